//! Text: escaped, cut, wrapped, measured; and numbers as text.

/// Text as HTML or XML shows it.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Not allowed in XML, in any form.
            control if control.is_control() && !matches!(control, '\t' | '\n' | '\r') => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// At most `longest` characters; where some are left out, the last one is `…`.
pub(crate) fn cut(text: &str, longest: usize) -> String {
    if text.chars().count() <= longest {
        return text.into();
    }
    let kept: String = text.chars().take(longest.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// The width of a text in a sans-serif font, about: SVG has no way to ask. In the unit of `size`.
pub(crate) fn width(text: &str, size: f64) -> f64 {
    // Widths of Liberation Sans (those of Helvetica) by class, in parts of the font's size.
    let em = |character| match character {
        'i' | 'j' | 'l' | '\'' | '|' => 0.22,
        'f' | 't' | 'r' | 'I' | ' ' | '.' | ',' | ':' | ';' | '!' | '/' | '(' | ')' | '-' => 0.32,
        'm' | 'w' | 'M' | 'W' | '%' | '—' | '…' | '@' => 0.87,
        'A'..='Z' | '&' => 0.69,
        _ => 0.56,
    };
    size * text.chars().map(em).sum::<f64>()
}

/// The text in lines no wider than `widest`, broken at spaces.
pub(crate) fn wrap(text: &str, size: f64, widest: f64) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let longer = if line.is_empty() { word.into() } else { format!("{line} {word}") };
        if !line.is_empty() && width(&longer, size) > widest {
            lines.push(std::mem::replace(&mut line, word.into()));
        } else {
            line = longer;
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// A score, to three decimals; `–` if there is none.
pub(crate) fn score(value: f64) -> String {
    if value.is_finite() { format!("{value:.3}") } else { "–".into() }
}

/// A mean with the deviation over `count` values; one value has none.
pub(crate) fn mean_and_deviation(mean: f64, deviation: f64, count: usize) -> String {
    if count > 1 && mean.is_finite() { format!("{mean:.3} ± {deviation:.3}") } else { score(mean) }
}

/// A learning rate or the like: `1e-3`, `0.06`, `2.5e-5`.
pub(crate) fn small(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.01 { format!("{value:e}") } else { format!("{value}") }
}

/// Seconds, in the unit that reads best.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => "–".into(),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// `a`, `a and b`, `a, b and c`.
pub(crate) fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_by_characters_and_not_by_bytes() {
        assert_eq!(cut("äöüß", 4), "äöüß");
        assert_eq!(cut("äöüß!", 4), "äöü…");
    }

    #[test]
    fn the_width_of_a_text_is_near_that_of_helvetica() {
        // Adobe's font metrics, in 1/1000 em: L 556 e 556 a 556 r 333 n 556 i 222 n 556 g 556, 278, r 333 a 556 t 278 e 556.
        let measured = 12.0 * 5892.0 / 1000.0;
        let estimated = width("Learning rate", 12.0);
        assert!((estimated / measured - 1.0).abs() < 0.1, "{estimated} against {measured}");
    }

    #[test]
    fn lines_are_broken_at_spaces_and_lose_no_word() {
        let text = "train 2500 of 3668 (partial); trained on 1200 of 2500 examples";
        let lines = wrap(text, 11.0, 150.0);
        assert!(lines.len() > 1 && lines.iter().all(|line| width(line, 11.0) <= 150.0), "{lines:?}");
        assert_eq!(lines.join(" "), text);
    }

    #[test]
    fn numbers_are_written_as_people_write_them() {
        assert_eq!([small(1e-3), small(2.5e-5), small(0.06), small(0.0)], ["1e-3", "2.5e-5", "0.06", "0"]);
        assert_eq!([duration(4.25), duration(75.0), duration(600.0)], ["4.2 s", "75 s", "10.0 min"]);
        assert_eq!(mean_and_deviation(0.8614, 0.0042, 3), "0.861 ± 0.004");
        assert_eq!(mean_and_deviation(0.8614, 0.0, 1), "0.861");
        assert_eq!(mean_and_deviation(f64::NAN, f64::NAN, 3), "–");
    }
}
