//! A sheet to draw on, in pixels with fractions: plotters' SVG backend, which has whole pixels only, on a finer grid.

use std::io;

use plotters::backend::{DrawingBackend, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontDesc, FontFamily, FontStyle, FontTransform, RGBColor, ShapeStyle, TextStyle};
use plotters_backend::DrawingErrorKind;

use crate::palette::{Colour, Marker};
use crate::text;

/// Steps of the grid in a pixel.
const GRID: f64 = 8.0;

/// Fonts of the same widths, by the name each system has them under.
const FONT: &str = "Liberation Sans, Arial, Helvetica, sans-serif";

/// plotters' SVG backend divides font sizes by this.
const FONT_SIZE_FACTOR: f64 = 1.24;

pub(crate) type Drawn = std::result::Result<(), DrawingErrorKind<io::Error>>;

/// A place on the sheet, in pixels from its upper left corner.
pub(crate) type Place = (f64, f64);

/// Where a text's anchor is along the line of writing.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Align {
    Start,
    Middle,
    End,
}

/// How a text is written. Its place is the middle of its height.
#[derive(Clone, Copy)]
pub(crate) struct Font {
    pub size: f64,
    pub colour: Colour,
    pub bold: bool,
    pub align: Align,
}

pub(crate) struct Canvas<'a> {
    backend: SVGBackend<'a>,
}

impl Canvas<'_> {
    /// Draws a sheet of this size and returns it as an SVG document. `title` is for readers who do not see it.
    pub fn draw(
        (width, height): (f64, f64),
        title: &str,
        draw: impl FnOnce(&mut Canvas) -> Drawn,
    ) -> std::result::Result<String, DrawingErrorKind<io::Error>> {
        let mut svg = String::new();
        let size = ((width * GRID).round() as u32, (height * GRID).round() as u32);
        let mut canvas = Canvas { backend: SVGBackend::with_string(&mut svg, size) };
        canvas.rectangle((0.0, 0.0), (width, height), Colour(255, 255, 255))?;
        draw(&mut canvas)?;
        canvas.backend.present()?;
        drop(canvas);
        // The backend gives the size of its grid; the sheet's is smaller.
        let body = svg.find('>').map_or("", |end| &svg[end + 1..]);
        let title = text::escape(title);
        Ok(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{title}\">{body}",
            size.0, size.1
        ))
    }

    pub fn line(&mut self, points: &[Place], colour: Colour, width: f64) -> Drawn {
        let style = ShapeStyle { color: rgb(colour).to_rgba(), filled: false, stroke_width: grid(width).max(1) as u32 };
        self.backend.draw_path(points.iter().map(|&place| cell(place)), &style)
    }

    /// A line of dashes and gaps of these lengths.
    pub fn dashed_line(&mut self, points: &[Place], colour: Colour, width: f64, (dash, gap): (f64, f64)) -> Drawn {
        for piece in dashes(points, dash, gap) {
            self.line(&piece, colour, width)?;
        }
        Ok(())
    }

    pub fn rectangle(&mut self, from: Place, to: Place, colour: Colour) -> Drawn {
        self.backend.draw_rect(cell(from), cell(to), &rgb(colour).filled(), true)
    }

    /// A marker with its middle at `place`; filled ones have a thin white rim, so that they stand out from each other.
    pub fn marker(&mut self, (x, y): Place, marker: Marker, colour: Colour, radius: f64) -> Drawn {
        if marker == Marker::Ring {
            let style = ShapeStyle { color: rgb(colour).to_rgba(), filled: false, stroke_width: grid(1.1) as u32 };
            return self.backend.draw_circle(cell((x, y)), grid(radius) as u32, &style, false);
        }
        for (radius, colour) in [(radius + 0.8, Colour(255, 255, 255)), (radius, colour)] {
            let fill = rgb(colour).filled();
            let around = |offsets: &[(f64, f64)]| -> Vec<(i32, i32)> {
                offsets.iter().map(|(dx, dy)| cell((x + dx * radius, y + dy * radius))).collect()
            };
            // Radii such that all have about the disc's area.
            match marker {
                Marker::Circle | Marker::Ring => {
                    self.backend.draw_circle(cell((x, y)), grid(radius) as u32, &fill, true)?;
                }
                Marker::Square => {
                    let corners = [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)];
                    self.backend.fill_polygon(around(&corners), &fill)?;
                }
                Marker::Triangle => {
                    let corners = [(0.0, -1.3), (1.15, 0.75), (-1.15, 0.75)];
                    self.backend.fill_polygon(around(&corners), &fill)?;
                }
                Marker::Diamond => {
                    let corners = [(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)];
                    self.backend.fill_polygon(around(&corners), &fill)?;
                }
            }
        }
        Ok(())
    }

    pub fn text(&mut self, text: &str, place: Place, font: Font) -> Drawn {
        self.turned_text(text, place, font, FontTransform::None)
    }

    /// Written upwards.
    pub fn upright_text(&mut self, text: &str, place: Place, font: Font) -> Drawn {
        self.turned_text(text, place, font, FontTransform::Rotate270)
    }

    fn turned_text(&mut self, text: &str, place: Place, font: Font, transform: FontTransform) -> Drawn {
        let weight = if font.bold { FontStyle::Bold } else { FontStyle::Normal };
        let description = FontDesc::new(FontFamily::Name(FONT), font.size * GRID * FONT_SIZE_FACTOR, weight);
        let horizontal = match font.align {
            Align::Start => HPos::Left,
            Align::Middle => HPos::Center,
            Align::End => HPos::Right,
        };
        let colour = rgb(font.colour);
        let style =
            TextStyle::from(description.transform(transform)).color(&colour).pos(Pos::new(horizontal, VPos::Center));
        self.backend.draw_text(text, &style, cell(place))
    }
}

/// The pieces of a line that its dashes cover.
fn dashes(points: &[Place], dash: f64, gap: f64) -> Vec<Vec<Place>> {
    let mut pieces = Vec::new();
    let mut piece: Vec<Place> = points.first().map(|&first| vec![first]).unwrap_or_default();
    let (mut in_dash, mut left) = (true, dash);
    for pair in points.windows(2) {
        let ((mut x, mut y), (end_x, end_y)) = (pair[0], pair[1]);
        let mut length = (end_x - x).hypot(end_y - y);
        while length > left {
            (x, y) = (x + (end_x - x) * left / length, y + (end_y - y) * left / length);
            length -= left;
            if in_dash {
                piece.push((x, y));
                pieces.push(std::mem::take(&mut piece));
            } else {
                piece = vec![(x, y)];
            }
            in_dash = !in_dash;
            left = if in_dash { dash } else { gap };
        }
        left -= length;
        if in_dash {
            piece.push((end_x, end_y));
        }
    }
    if piece.len() > 1 {
        pieces.push(piece);
    }
    pieces
}

fn grid(pixels: f64) -> i32 {
    (pixels * GRID).round() as i32
}

/// The cell of the grid that a place falls into: what stands in the SVG.
pub(crate) fn cell((x, y): Place) -> (i32, i32) {
    (grid(x), grid(y))
}

fn rgb(colour: Colour) -> RGBColor {
    RGBColor(colour.0, colour.1, colour.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_go_around_corners_and_cover_their_share_of_the_line() {
        let pieces = dashes(&[(0.0, 0.0), (5.0, 0.0), (5.0, 5.0)], 4.0, 2.0);
        assert_eq!(pieces, [vec![(0.0, 0.0), (4.0, 0.0)], vec![(5.0, 1.0), (5.0, 5.0)]]);
    }
}
