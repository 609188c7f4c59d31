//! A plot of the report, as SVG.

use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

/// Width and height, in pixels.
const SIZE: (u32, u32) = (820, 460);

/// The scale of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Axis {
    /// Linear, from zero.
    Linear,
    /// Logarithmic.
    Log,
}

/// A line plot. Points that a logarithmic axis cannot show are skipped.
#[derive(Debug, Clone)]
pub(crate) struct Plot {
    /// The file name, without the extension.
    pub(crate) name: &'static str,
    pub(crate) title: String,
    pub(crate) x: (&'static str, Axis),
    pub(crate) y: (&'static str, Axis),
    pub(crate) lines: Vec<Line>,
}

/// A line of a plot.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Plot {
    /// Draws the plot into `folder`, if it has points.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn draw(&self, folder: &Path) -> anyhow::Result<Option<String>> {
        let mut lines = self.lines.clone();
        for line in &mut lines {
            line.points
                .retain(|(x, y)| has_place(*x, self.x.1) && has_place(*y, self.y.1));
        }
        lines.retain(|line| !line.points.is_empty());
        let Some((x, y)) = bounds(&lines) else {
            return Ok(None);
        };
        let file = format!("{}.svg", self.name);
        let path = folder.join(&file);
        let (x, y) = (around(x, self.x.1), around(y, self.y.1));
        let root = SVGBackend::new(&path, SIZE).into_drawing_area();
        let linear = |(low, high): (f64, f64)| low..high;
        let drawn = match (self.x.1, self.y.1) {
            (Axis::Linear, Axis::Linear) => self.draw_over(&root, linear(x), linear(y), &lines),
            (Axis::Linear, Axis::Log) => {
                self.draw_over(&root, linear(x), linear(y).log_scale(), &lines)
            }
            (Axis::Log, Axis::Linear) => {
                self.draw_over(&root, linear(x).log_scale(), linear(y), &lines)
            }
            (Axis::Log, Axis::Log) => {
                self.draw_over(&root, linear(x).log_scale(), linear(y).log_scale(), &lines)
            }
        };
        drawn
            .and_then(|()| Ok(root.present()?))
            .with_context(|| format!("cannot draw {}", path.display()))?;
        Ok(Some(file))
    }

    fn draw_over<X, Y>(
        &self,
        root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
        x: X,
        y: Y,
        lines: &[Line],
    ) -> anyhow::Result<()>
    where
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(root)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(76)
            .build_cartesian_2d(x, y)
            .map_err(|error| anyhow!("{error}"))?;
        let label = |value: &f64| short(*value);
        chart
            .configure_mesh()
            .x_desc(self.x.0)
            .y_desc(self.y.0)
            .x_label_formatter(&label)
            .y_label_formatter(&label)
            .light_line_style(WHITE)
            .draw()?;
        for (index, line) in lines.iter().enumerate() {
            let colour = Palette99::pick(index).to_rgba();
            let style = colour.stroke_width(2);
            let points = line.points.iter().copied();
            chart
                .draw_series(LineSeries::new(points.clone(), style))?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
            chart.draw_series(points.map(|point| Circle::new(point, 3, colour.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        Ok(())
    }
}

fn has_place(value: f64, axis: Axis) -> bool {
    value.is_finite() && (axis == Axis::Linear || value > 0.0)
}

/// Returns the bounds of each axis.
type Bounds = ((f64, f64), (f64, f64));

fn bounds(lines: &[Line]) -> Option<Bounds> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let of = |pick: fn(&(f64, f64)) -> f64| {
        let low = points().map(pick).reduce(f64::min)?;
        Some((low, points().map(pick).reduce(f64::max)?))
    };
    Some((of(|point| point.0)?, of(|point| point.1)?))
}

/// Widens a range slightly, so that it is never empty.
fn around((low, high): (f64, f64), axis: Axis) -> (f64, f64) {
    match axis {
        Axis::Linear => (low.min(0.0), if high > 0.0 { high * 1.05 } else { 1.0 }),
        Axis::Log => (low / 1.3, high * 1.3),
    }
}

/// Formats a number of an axis: `1.5k`, `2M`.
fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        magnitude if magnitude >= 999_500.0 => (value / 1e6, "M"),
        magnitude if magnitude >= 999.5 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = if scaled.abs() >= 10.0 {
        format!("{scaled:.0}")
    } else {
        format!("{scaled:.3}")
    };
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: Vec<(f64, f64)>) -> Plot {
        let lines = vec![Line {
            name: "harkd".to_owned(),
            points,
        }];
        Plot {
            name: "p",
            title: "Memory".to_owned(),
            x: ("connections", Axis::Log),
            y: ("MiB", Axis::Linear),
            lines,
        }
    }

    #[test]
    fn plot_is_an_svg_with_its_labels() {
        let folder = tempfile::tempdir().unwrap();
        let file = plot(vec![(10.0, 2.0), (1000.0, 30.0)])
            .draw(folder.path())
            .unwrap()
            .unwrap();
        let svg = std::fs::read_to_string(folder.path().join(file)).unwrap();
        for word in ["<svg", "Memory", "connections", "MiB", "harkd", "<polyline"] {
            assert!(svg.contains(word), "{word}: {svg}");
        }
    }

    #[test]
    fn empty_plot_is_not_drawn() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            plot(vec![(0.0, 2.0), (f64::NAN, 1.0)])
                .draw(folder.path())
                .unwrap(),
            None
        );
    }

    #[test]
    fn numbers_of_an_axis_are_short() {
        let short: Vec<_> = [0.0, 0.25, 5.0, 250.0, 1500.0, 20_000.0, 2e6]
            .map(short)
            .into();
        assert_eq!(short, ["0", "0.25", "5", "250", "1.5k", "20k", "2M"]);
    }
}
