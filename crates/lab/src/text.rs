//! Text of tables and charts: escaped for HTML, cut, listed.

pub(crate) use trainer::numbers::{duration, score, small, yes_or_no};

/// Text as HTML shows it.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Not allowed in HTML or XML, in any form.
            '\t' | '\n' | '\r' => escaped.push(character),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            control if control.is_control() => escaped.push('\u{fffd}'),
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

    /// An independent reader of XML 1.0 takes what it is, in text and in attributes, and gives back what was meant.
    #[test]
    fn every_character_of_unicode_is_fit_for_xml_once_it_is_escaped() {
        let all: Vec<char> = (0..=u32::from(char::MAX)).filter_map(char::from_u32).collect();
        for part in all.chunks(1 << 12) {
            let text: String = part.iter().collect();
            let svg = format!("<svg a=\"{0}\"><text>{0}</text></svg>", escape(&text));
            let document = roxmltree::Document::parse(&svg).unwrap();
            let read = document.root_element().first_element_child().unwrap().text().unwrap();
            // What no XML can hold is replaced, and a reader makes one line feed of a carriage return.
            let is_in_xml = |c: char| matches!(c, '\t' | '\n' | ' '..='\u{fffd}' | '\u{10000}'..) && !c.is_control();
            let expected = |c: char| {
                if c == '\r' || c == '\n' {
                    '\n'
                } else if c == '\t' || is_in_xml(c) {
                    c
                } else {
                    '\u{fffd}'
                }
            };
            assert!(read.chars().eq(part.iter().copied().map(expected)), "from {:?}", part[0]);
        }
    }

    #[test]
    fn markup_in_data_is_shown_and_not_obeyed() {
        assert_eq!(escape("<script>\"a\" & 'b'"), "&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;");
    }
}
