//! Colours and markers: the same for a method in every chart.

use peft::Method;

/// A colour: red, green, blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour(pub u8, pub u8, pub u8);

impl Colour {
    /// As CSS writes it, such as `#0072b2`.
    pub fn hex(self) -> String {
        format!("#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }

    /// Mixed with white, from 0 (the colour) to 1 (white).
    pub fn lighter(self, share: f64) -> Self {
        let mix = |part: u8| (f64::from(part) + (255.0 - f64::from(part)) * share).round() as u8;
        Self(mix(self.0), mix(self.1), mix(self.2))
    }
}

// The palette that people with any of the common kinds of colour blindness can tell apart (Okabe and Ito 2008, "Color Universal
// Design").
const ORANGE: Colour = Colour(0xe6, 0x9f, 0x00);
const SKY_BLUE: Colour = Colour(0x56, 0xb4, 0xe9);
const BLUISH_GREEN: Colour = Colour(0x00, 0x9e, 0x73);
const BLUE: Colour = Colour(0x00, 0x72, 0xb2);
const VERMILLION: Colour = Colour(0xd5, 0x5e, 0x00);
const REDDISH_PURPLE: Colour = Colour(0xcc, 0x79, 0xa7);

/// What text and axes are drawn in.
pub(crate) const INK: Colour = Colour(0x26, 0x2b, 0x30);
/// What is less important than the data.
pub(crate) const GREY: Colour = Colour(0x6b, 0x73, 0x7a);
/// Lines of the grid.
pub(crate) const GRID: Colour = Colour(0xe3, 0xe6, 0xe8);

/// The form of a point, so that a chart can be read without its colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// A disc.
    Circle,
    /// A square.
    Square,
    /// A triangle that points up.
    Triangle,
    /// A square that stands on a corner.
    Diamond,
    /// An open circle.
    Ring,
}

/// How a series looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Of its lines, bars and points.
    pub colour: Colour,
    /// Of its points.
    pub marker: Marker,
}

impl Style {
    /// Of single runs beside their mean, and of what belongs to no method.
    pub const PLAIN: Self = Self { colour: INK, marker: Marker::Ring };

    /// Of a method. Those of one kind share the colour; see [`Style::variant`].
    pub fn of(method: &Method) -> Self {
        match method {
            Method::Full => Self { colour: BLUE, marker: Marker::Square },
            Method::Lora(_) => Self { colour: VERMILLION, marker: Marker::Circle },
            Method::AdaLora(_) => Self { colour: VERMILLION, marker: Marker::Diamond },
            Method::Vera(_) => Self { colour: REDDISH_PURPLE, marker: Marker::Circle },
            Method::Ia3(_) => Self { colour: SKY_BLUE, marker: Marker::Triangle },
            Method::LnTuning(_) => Self { colour: ORANGE, marker: Marker::Diamond },
            Method::Bottleneck(_) => Self { colour: SKY_BLUE, marker: Marker::Square },
            Method::BitFit(_) => Self { colour: BLUISH_GREEN, marker: Marker::Triangle },
            Method::PrefixTuning(_) => Self { colour: REDDISH_PURPLE, marker: Marker::Square },
            Method::PromptTuning(_) => Self { colour: REDDISH_PURPLE, marker: Marker::Circle },
            Method::PTuning(_) => Self { colour: REDDISH_PURPLE, marker: Marker::Triangle },
            Method::Head => Self { colour: REDDISH_PURPLE, marker: Marker::Diamond },
        }
    }

    /// Of the published scores of the model with this number, from 0: faint, beside one's own.
    pub fn published(number: usize) -> Self {
        const MARKERS: [Marker; 2] = [Marker::Ring, Marker::Diamond];
        Self { colour: GREY.lighter(0.3), marker: MARKERS[number % 2] }
    }

    /// The same, the lighter the higher the number: for several settings of one method in one chart.
    pub fn variant(self, number: usize) -> Self {
        Self { colour: self.colour.lighter((0.3 * number as f64).min(0.75)), ..self }
    }

    /// Of the series with this number, from 0, in a chart that does not compare methods.
    pub fn numbered(number: usize) -> Self {
        const COLOURS: [Colour; 4] = [SKY_BLUE, ORANGE, BLUE, REDDISH_PURPLE];
        const MARKERS: [Marker; 4] = [Marker::Circle, Marker::Square, Marker::Triangle, Marker::Diamond];
        Self { colour: COLOURS[number % 4], marker: MARKERS[number % 4] }
    }
}
