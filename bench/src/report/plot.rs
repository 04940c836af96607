//! Plots as SVG: lines over a number, and bars.

use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::figure::number;

/// Colours that people with any colour vision can tell apart (Okabe and Ito), without yellow, and grey.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(110, 110, 110),
    RGBColor(0, 0, 0),
];
const TEXT: RGBColor = RGBColor(51, 51, 51);
const GRID: RGBColor = RGBColor(225, 225, 225);
const FONT: &str = "sans-serif";
/// Heights of letters, in pixels; plotters makes them smaller by 1.24.
const NORMAL: f64 = 16.0;
const LARGE: f64 = 19.0;
const WIDTH: u32 = 860;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// One axis.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    /// What it shows, with its unit.
    pub(super) name: String,
    pub(super) is_log: bool,
}

/// One line, by its name; points are x, median, least and most.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, [f64; 3])>,
}

#[derive(Clone, Debug)]
pub(super) struct Lines {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
}

/// One bar: what, then median, least and most, and which group of bars it belongs to, by colour.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) values: [f64; 3],
    pub(super) group: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Bars {
    pub(super) title: String,
    /// Of the values.
    pub(super) unit: String,
    /// Names of the groups; with one alone there is no key.
    pub(super) groups: Vec<String>,
    pub(super) bars: Vec<Bar>,
}

/// An axis with its ends and the places of its labels.
struct Ruler {
    is_log: bool,
    ends: Range<f64>,
    ticks: Vec<f64>,
}

impl Ruler {
    /// With labels at `ticks`, in ascending order, and `margin` beyond them, as a part of the whole.
    fn new(is_log: bool, ticks: Vec<f64>, margin: f64) -> Self {
        let mut ruler = Self { is_log, ends: 0.0..1.0, ticks };
        let (first, last) = match ruler.ticks[..] {
            [first, .., last] => (ruler.place(first), ruler.place(last)),
            _ => (0.0, 1.0),
        };
        let beyond = margin * (last - first);
        ruler.ends = first - beyond..last + beyond;
        ruler
    }

    fn place(&self, value: f64) -> f64 {
        if self.is_log { value.max(f64::MIN_POSITIVE).log10() } else { value }
    }
}

impl Ranged for Ruler {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let part = (self.place(*value) - self.ends.start) / (self.ends.end - self.ends.start);
        first + (part * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        let value = |place: f64| if self.is_log { 10_f64.powf(place) } else { place };
        value(self.ends.start)..value(self.ends.end)
    }
}

impl ValueFormatter<f64> for Ruler {
    fn format_ext(&self, value: &f64) -> String {
        number_of_axis(*value)
    }
}

impl Lines {
    pub(super) fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        self.draw(&SVGBackend::with_string(&mut svg, (WIDTH, 420)).into_drawing_area())
            .map_err(|error| anyhow!("cannot plot \"{}\": {error}", self.title))?;
        Ok(svg)
    }

    fn draw(&self, root: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
        root.fill(&WHITE)?;
        title(root, &self.title)?;
        let values = || self.lines.iter().flat_map(|line| line.points.iter());
        let mut xs: Vec<_> = values().map(|(x, _)| *x).collect();
        xs.sort_by(f64::total_cmp);
        xs.dedup();
        let least = values().map(|(_, [_, least, _])| *least).fold(f64::MAX, f64::min);
        let most = values().map(|(_, [_, _, most])| *most).fold(0.0, f64::max);
        let ticks = if self.y.is_log { decades(least, most) } else { steps(most) };
        let mut chart = ChartBuilder::on(root)
            .margin_top(44)
            .margin_bottom(8)
            .margin_left(14)
            .margin_right(190)
            .set_label_area_size(LabelAreaPosition::Left, 76)
            .set_label_area_size(LabelAreaPosition::Bottom, 46)
            .build_cartesian_2d(
                Ruler::new(self.x.is_log, xs, 0.03),
                Ruler::new(self.y.is_log, ticks, 0.0),
            )?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(TEXT)
            .label_style(font(NORMAL))
            .axis_desc_style(font(NORMAL))
            .x_desc(&self.x.name)
            .y_desc(&self.y.name)
            .draw()?;
        let mut ends = Vec::new();
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let points: Vec<_> =
                line.points.iter().map(|(at, [median, ..])| (*at, *median)).collect();
            chart.draw_series(line.points.iter().map(|(at, [_, least, most])| {
                let spread = [(*at, *least), (*at, *most)];
                PathElement::new(spread, colour.mix(0.5).stroke_width(5))
            }))?;
            chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?;
            chart.draw_series(points.iter().map(|at| Circle::new(*at, 4, colour.filled())))?;
            if let Some(last) = points.last() {
                ends.push((chart.backend_coord(last), line.name.as_str(), *colour));
            }
        }
        names(root, ends)?;
        root.present()?;
        Ok(())
    }
}

/// Writes the names of lines beside their ends, each at least a line of text below the one before.
fn names(
    root: &Area<'_>,
    mut ends: Vec<((i32, i32), &str, RGBColor)>,
) -> Result<(), Box<dyn std::error::Error>> {
    const HEIGHT: i32 = 17;
    ends.sort_by_key(|((_, y), name, _)| (*y, name.to_string()));
    let right = ends.iter().map(|((x, _), ..)| *x).max().unwrap_or_default();
    // What would be pushed below the plot pushes the others up.
    let bottom = 372;
    let mut places: Vec<i32> = ends.iter().map(|((_, y), ..)| *y).collect();
    for index in 1..places.len() {
        places[index] = places[index].max(places[index - 1] + HEIGHT);
    }
    for (index, place) in places.iter_mut().rev().enumerate() {
        *place = (*place).min(bottom - index as i32 * HEIGHT);
    }
    for ((_, name, colour), y) in ends.into_iter().zip(places) {
        let style = font(NORMAL).color(&colour).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(name.to_owned(), (right + 24, y), style))?;
    }
    Ok(())
}

impl Bars {
    pub(super) fn svg(&self) -> Result<String> {
        const ROW: i32 = 24;
        let has_key = self.groups.len() > 1;
        let top = if has_key { 76 } else { 50 };
        let height = top + ROW * self.bars.len() as i32 + 14;
        let mut svg = String::new();
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height as u32)).into_drawing_area();
        self.draw(&root, top, ROW)
            .map_err(|error| anyhow!("cannot plot \"{}\": {error}", self.title))?;
        drop(root);
        Ok(svg)
    }

    fn draw(&self, root: &Area<'_>, top: i32, row: i32) -> Result<(), Box<dyn std::error::Error>> {
        /// Where bars begin and end.
        const LEFT: i32 = 350;
        const RIGHT: i32 = WIDTH as i32 - 150;
        root.fill(&WHITE)?;
        title(root, &format!("{}, {}", self.title, self.unit))?;
        if self.groups.len() > 1 {
            self.key(root, LEFT, 52)?;
        }
        let most = self.bars.iter().map(|bar| bar.values[2]).fold(f64::MIN_POSITIVE, f64::max);
        let place = |value: f64| LEFT + (value / most * f64::from(RIGHT - LEFT)).round() as i32;
        for (index, bar) in self.bars.iter().enumerate() {
            let [median, least, lasts] = bar.values;
            let y = top + row * index as i32;
            let middle = y + row / 2;
            let colour = COLOURS[bar.group % COLOURS.len()];
            let right = font(NORMAL).pos(Pos::new(HPos::Right, VPos::Center));
            root.draw(&Text::new(bar.name.clone(), (LEFT - 10, middle), right))?;
            let corners = [(LEFT, y + 3), (place(median), y + row - 3)];
            root.draw(&Rectangle::new(corners, colour.filled()))?;
            let spread = [(place(least), middle), (place(lasts), middle)];
            root.draw(&PathElement::new(spread, TEXT.stroke_width(2)))?;
            let left = font(NORMAL).pos(Pos::new(HPos::Left, VPos::Center));
            let at = (place(lasts.max(median)) + 8, middle);
            root.draw(&Text::new(number(median), at, left))?;
        }
        root.draw(&PathElement::new(
            [(LEFT, top), (LEFT, top + row * self.bars.len() as i32)],
            TEXT.stroke_width(1),
        ))?;
        root.present()?;
        Ok(())
    }

    fn key(&self, root: &Area<'_>, left: i32, y: i32) -> Result<(), Box<dyn std::error::Error>> {
        for (index, name) in self.groups.iter().enumerate() {
            let x = left + 160 * index as i32;
            let colour = COLOURS[index % COLOURS.len()];
            root.draw(&Rectangle::new([(x, y - 6), (x + 12, y + 6)], colour.filled()))?;
            let style = font(NORMAL).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new(name.clone(), (x + 18, y), style))?;
        }
        Ok(())
    }
}

fn title(root: &Area<'_>, text: &str) -> Result<(), Box<dyn std::error::Error>> {
    let style = font(LARGE).pos(Pos::new(HPos::Left, VPos::Center));
    root.draw(&Text::new(text.to_owned(), (12, 22), style))?;
    Ok(())
}

fn font(size: f64) -> TextStyle<'static> {
    TextStyle::from((FONT, size).into_font()).color(&TEXT)
}

/// As [`number`], without the zeros behind a decimal point.
fn number_of_axis(value: f64) -> String {
    let text = number((value * 1e9).round() / 1e9);
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// From 0 to `most` or above in about five steps of 1, 2 or 5 times a power of ten.
fn steps(most: f64) -> Vec<f64> {
    let rough = (most / 5.0).max(f64::MIN_POSITIVE);
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    let step = step.into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let count = (most / step).ceil().max(1.0) as u32;
    (0..=count).map(|index| f64::from(index) * step).collect()
}

/// The powers of ten from `least` or below to `most` or above.
fn decades(least: f64, most: f64) -> Vec<f64> {
    let first = least.max(1e-9).log10().floor() as i32;
    let last = (most.max(1e-9).log10().ceil() as i32).max(first + 1);
    (first..=last).map(|power| 10_f64.powi(power)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_numbers() {
        assert_eq!(steps(13.1), [0.0, 5.0, 10.0, 15.0]);
        assert_eq!(steps(0.9), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(decades(3.0, 420.0), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!([0.6000000000000001, 20.0, 1e6].map(number_of_axis), ["0.6", "20", "1,000,000"]);
    }
}
