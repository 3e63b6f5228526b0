//! Colors and marker symbols of a chart's series: a method has its own in every chart, and no two methods of a chart look alike.

use std::mem::discriminant;

use peft::Method;
use plotly::common::MarkerSymbol;

// The palette that people with any of the common kinds of color blindness can tell apart (Okabe and Ito 2008, "Color Universal
// Design"), without its black and its yellow, which is too faint on white.
const ORANGE: &str = "#e69f00";
const SKY_BLUE: &str = "#56b4e9";
const BLUISH_GREEN: &str = "#009e73";
const BLUE: &str = "#0072b2";
const VERMILLION: &str = "#d55e00";
const REDDISH_PURPLE: &str = "#cc79a7";

/// Text, axes and reference lines.
pub(crate) const INK: &str = "#262b30";
/// What is less important than the data.
pub(crate) const GRAY: &str = "#6b737a";
const LIGHT_GRAY: &str = "#979da2";
/// Lines of the grid.
pub(crate) const GRID: &str = "#e3e6e8";

/// What a series looks like: the color of its lines, bars and markers, and the symbol of its markers, so that a chart can be read
/// without its colors.
#[derive(Clone, Debug)]
pub struct Style {
    /// As CSS writes it, such as `#0072b2`.
    pub color: &'static str,
    /// plotly's symbol.
    pub symbol: MarkerSymbol,
}

impl PartialEq for Style {
    fn eq(&self, other: &Self) -> bool {
        self.color == other.color && discriminant(&self.symbol) == discriminant(&other.symbol)
    }
}

/// The symbols that differ most in outline, those that are told apart best first.
const SYMBOLS: [MarkerSymbol; 12] = [
    MarkerSymbol::Circle,
    MarkerSymbol::Square,
    MarkerSymbol::Diamond,
    MarkerSymbol::TriangleUp,
    MarkerSymbol::Cross,
    MarkerSymbol::X,
    MarkerSymbol::TriangleDown,
    MarkerSymbol::Star,
    MarkerSymbol::CircleOpen,
    MarkerSymbol::SquareOpen,
    MarkerSymbol::DiamondOpen,
    MarkerSymbol::TriangleUpOpen,
];

/// What kinds of methods look like, in the order of [`Method::IDS`]. Relatives share a color: those that train the model's own weights,
/// its biases and norms, small factors, inserted layers, or virtual tokens.
const KINDS: [(&str, MarkerSymbol); 18] = [
    (BLUE, MarkerSymbol::Square),
    (BLUE, MarkerSymbol::Diamond),
    (BLUISH_GREEN, MarkerSymbol::TriangleUp),
    (VERMILLION, MarkerSymbol::Circle),
    (ORANGE, MarkerSymbol::TriangleUp),
    (BLUISH_GREEN, MarkerSymbol::Diamond),
    (SKY_BLUE, MarkerSymbol::Square),
    (SKY_BLUE, MarkerSymbol::Diamond),
    (ORANGE, MarkerSymbol::Square),
    (VERMILLION, MarkerSymbol::Square),
    (VERMILLION, MarkerSymbol::Diamond),
    (VERMILLION, MarkerSymbol::Cross),
    (ORANGE, MarkerSymbol::Circle),
    (REDDISH_PURPLE, MarkerSymbol::Square),
    (REDDISH_PURPLE, MarkerSymbol::Circle),
    (REDDISH_PURPLE, MarkerSymbol::TriangleUp),
    (VERMILLION, MarkerSymbol::TriangleUp),
    (SKY_BLUE, MarkerSymbol::Circle),
];

impl Style {
    const fn new(color: &'static str, symbol: MarkerSymbol) -> Self {
        Self { color, symbol }
    }

    /// The style of single runs beside their mean.
    pub const fn single_run() -> Self {
        Self::new(INK, MarkerSymbol::CircleOpen)
    }

    /// The style of a kind of method: that of its place in the list of methods.
    pub fn of(method: &Method) -> Self {
        let place = Method::IDS.iter().position(|id| *id == method.id()).unwrap_or_default();
        let (color, symbol) = KINDS[place % KINDS.len()].clone();
        Self::new(color, symbol)
    }

    /// This style, or where a chart has it already the same color with the first symbol that the chart does not have, and another color
    /// where it has all: for variants of a method beside each other, such as LoRA and DoRA.
    pub fn unlike(self, taken: &[Self]) -> Self {
        let colors = [self.color, VERMILLION, BLUE, BLUISH_GREEN, REDDISH_PURPLE, ORANGE, SKY_BLUE];
        let others = colors.into_iter().flat_map(|color| SYMBOLS.map(|symbol| Self::new(color, symbol)));
        let free = std::iter::once(self.clone()).chain(others).find(|style| !taken.contains(style));
        free.unwrap_or(self)
    }

    /// The style of the published scores of the model with this index: faint, beside one's own.
    pub fn published(index: usize) -> Self {
        const SYMBOLS: [MarkerSymbol; 2] = [MarkerSymbol::CircleOpen, MarkerSymbol::Diamond];
        Self::new(LIGHT_GRAY, SYMBOLS[index % SYMBOLS.len()].clone())
    }

    /// The style of the series with this index, in a chart that does not compare methods.
    pub fn indexed(index: usize) -> Self {
        const COLORS: [&str; 4] = [SKY_BLUE, ORANGE, BLUE, REDDISH_PURPLE];
        // The symbols shift by one with each turn of the colors, so that no pair comes again in twelve turns.
        Self::new(COLORS[index % COLORS.len()], SYMBOLS[(index + index / COLORS.len()) % SYMBOLS.len()].clone())
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn kinds() -> Vec<Method> {
        Method::IDS.iter().filter_map(|id| Method::of_id(id)).collect()
    }

    fn assert_distinct(styles: &[Style]) {
        for (index, style) in styles.iter().enumerate() {
            assert!(!styles[..index].contains(style), "{style:?} twice");
        }
    }

    #[test]
    fn no_two_kinds_of_method_share_a_style() {
        assert!(kinds().len() <= KINDS.len(), "give the new method a style");
        let mut styles: Vec<Style> = kinds().iter().map(Style::of).collect();
        styles.extend([Style::single_run(), Style::published(0), Style::published(1)]);
        assert_distinct(&styles);
    }

    #[test]
    fn twelve_variants_of_a_method_differ_in_their_symbols() {
        let mut styles: Vec<Style> = Vec::new();
        for _ in 0..SYMBOLS.len() {
            styles.push(Style::of(&Method::lora(8)).unlike(&styles));
        }
        assert_distinct(&styles);
        assert!(styles.iter().all(|style| style.color == VERMILLION));
        for _ in 0..30 {
            styles.push(Style::of(&Method::lora(8)).unlike(&styles));
        }
        assert_distinct(&styles);
    }

    #[test]
    fn the_series_of_a_chart_of_many_tasks_differ() {
        assert_distinct(&(0..24).map(Style::indexed).collect::<Vec<_>>());
    }

    /// Linear light of red, green and blue, from 0 to 1.
    fn linear(color: &str) -> [f64; 3] {
        [1, 3, 5].map(|at| {
            let value = f64::from(u8::from_str_radix(&color[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        })
    }

    fn apply(matrix: [[f64; 3]; 3], vector: [f64; 3]) -> [f64; 3] {
        matrix.map(|row| row.iter().zip(vector).map(|(a, b)| a * b).sum())
    }

    /// Lightness and the two opponent colors of Oklab (Ottosson 2020), in which distances are about as seen.
    fn oklab(color: [f64; 3]) -> [f64; 3] {
        let cones = [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ];
        let opponents = [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ];
        apply(opponents, apply(cones, color).map(|value| value.max(0.0).cbrt()))
    }

    #[test]
    fn colors_are_told_apart_with_every_kind_of_color_blindness() {
        // Machado, Oliveira and Fernandes 2009, severity 1: protanopia, deuteranopia, tritanopia.
        let kinds = [
            [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
            [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
            [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
        ];
        let colors = [ORANGE, SKY_BLUE, BLUISH_GREEN, BLUE, VERMILLION, REDDISH_PURPLE, INK];
        for kind in kinds {
            let seen = colors.map(|color| oklab(apply(kind, linear(color))));
            for (index, one) in seen.iter().enumerate() {
                for (other, two) in seen.iter().enumerate().skip(index + 1) {
                    let distance = one.iter().zip(two).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
                    // Oklab's lightness goes from 0 to 1; three times what an eye notices, about 0.02.
                    assert!(distance > 0.06, "{} and {}: {distance:.3}", colors[index], colors[other]);
                }
            }
        }
    }
}
