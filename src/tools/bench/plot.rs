//! The report as a picture: how latencies are distributed, and what depth brings.

use std::error::Error;
use std::path::Path;

use plotters::coord::combinators::BindKeyPoints;
use plotters::prelude::*;

use crate::tools::bench::report::{DepthReport, PeerReport};
use crate::tools::bench::text::title;
use crate::tools::bench::{BenchError, Report};

const SIZE: (u32, u32) = (1200, 620);
const HEAD_PIXELS: u32 = 96;

/// Told apart by those who see no colours, too: the marks differ.
const COLOURS: [RGBColor; 2] = [RGBColor(0x1f, 0x6f, 0xb4), RGBColor(0xd9, 0x5f, 0x02)];

/// 99.9999999999 % is enough for everyone.
const MOST_NINES: u8 = 13;

/// Points of a line of latencies, and how many of them share a mark.
const STEPS: u16 = 200;
const MARK_EVERY: usize = 20;

const TITLE: (&str, u32) = ("sans-serif", 22);
const CAPTION: (&str, u32) = ("sans-serif", 18);
const LABEL: (&str, u32) = ("sans-serif", 14);

type DrawResult = Result<(), Box<dyn Error>>;

/// Draws a report into an SVG file.
///
/// # Errors
/// The file cannot be written.
pub fn draw(report: &Report, path: &Path) -> Result<(), BenchError> {
    let failed = |reason: String| BenchError::Plot { path: path.to_owned(), reason };
    let mut text = String::new();
    picture(report, &mut text).map_err(|error| failed(error.to_string()))?;
    std::fs::write(path, text).map_err(|error| failed(error.to_string()))
}

fn picture(report: &Report, text: &mut String) -> DrawResult {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(HEAD_PIXELS);
    let (left, right) = body.split_horizontally(SIZE.0 / 2);
    legend(report, &head)?;
    latencies(report, &left)?;
    throughput(report, &right)?;
    root.present()?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// What was measured, and which line is whose.
fn legend(report: &Report, area: &Area<'_>) -> DrawResult {
    area.draw(&Text::new(title(report), (20, 12), TITLE.into_font()))?;
    for ((peer, colour), y) in report.peers.iter().zip(COLOURS).zip([44, 68]) {
        area.draw(&PathElement::new([(20, y + 8), (60, y + 8)], colour.stroke_width(2)))?;
        area.draw(&mark(peer, (40, y + 8), colour))?;
        area.draw(&Text::new(format!("{}  {}", peer.name, peer.socket), (70, y), LABEL.into_font()))?;
    }
    Ok(())
}

/// The first back-end has dots, the second one crosses.
fn mark<'a, C>(peer: &PeerReport, place: C, colour: RGBColor) -> DynElement<'static, SVGBackend<'a>, C>
where
    C: Clone + 'static,
{
    match peer.name {
        "A" => Circle::new(place, 4, colour.filled()).into_dyn(),
        _ => Cross::new(place, 4, colour.stroke_width(2)).into_dyn(),
    }
}

/// Nines of a percentile: 0 is the shortest latency, 1 is 90 %, 2 is 99 % …
fn nines(point: &DepthReport) -> Vec<(f64, f64)> {
    let count = (point.histogram.len().max(1) as f64).log10();
    let steps = 0..=STEPS;
    let at = |step: u16| {
        let x = count * f64::from(step) / f64::from(STEPS);
        let quantile = 1.0 - 10f64.powf(-x);
        (x, point.histogram.value_at_quantile(quantile) as f64 / 1e3)
    };
    steps.map(at).collect()
}

/// How many whole nines there are up to `right`, with the first.
fn count_of_nines(right: f64) -> usize {
    (0..MOST_NINES).take_while(|nine| f64::from(*nine) <= right).count()
}

/// The latency that so many of a thousand, or a million, requests stay under.
fn latencies(report: &Report, area: &Area<'_>) -> DrawResult {
    let last = report.peers.iter().filter_map(|peer| peer.depths.last());
    let lines: Vec<_> = last.map(nines).collect();
    let points = || lines.iter().flatten();
    let right = points().map(|point| point.0).fold(1.0, f64::max);
    let low = points().map(|point| point.1).fold(f64::MAX, f64::min).max(0.01);
    let high = points().map(|point| point.1).fold(low, f64::max);
    let (low, high) = (low / 1.5, high * 1.5);
    let depth = report.peers.first().and_then(|peer| peer.depths.last()).map_or(0, |point| point.iodepth);
    let mut chart = ChartBuilder::on(area)
        .caption(format!("Latency at iodepth {depth}"), CAPTION)
        .margin(12)
        .x_label_area_size(48)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..right, (low..high).log_scale().with_key_points(ticks(low, high)))?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(count_of_nines(right))
        .x_desc("requests that took no longer, in per cent")
        .y_desc("latency, µs")
        .axis_desc_style(LABEL)
        .label_style(LABEL)
        .x_label_formatter(&|x| percentile(*x))
        .y_label_formatter(&|y| format!("{y}"))
        .draw()?;
    for ((line, peer), colour) in lines.iter().zip(&report.peers).zip(COLOURS) {
        chart.draw_series(LineSeries::new(line.iter().copied(), colour.stroke_width(2)))?;
        let marks = line.iter().step_by(MARK_EVERY).map(|place| mark(peer, *place, colour));
        chart.draw_series(marks)?;
    }
    Ok(())
}

fn percentile(nines: f64) -> String {
    let nearest = (0..MOST_NINES).find(|nine| (nines - f64::from(*nine)).abs() < 0.5);
    match nearest {
        Some(0) => "0".to_owned(),
        Some(1) => "90".to_owned(),
        Some(2) => "99".to_owned(),
        Some(count) => format!("99.{}", "9".repeat(usize::from(count) - 2)),
        None => String::new(),
    }
}

/// 1, 2 and 5 times the powers of ten between two numbers.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let all = (-2..=9).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
    all.filter(|tick| (low..=high).contains(tick)).collect()
}

/// Requests a second at each depth, with the spread of the rounds.
fn throughput(report: &Report, area: &Area<'_>) -> DrawResult {
    let depths: Vec<u16> = report
        .peers
        .first()
        .map(|peer| peer.depths.iter().map(|it| it.iodepth).collect())
        .unwrap_or_default();
    let right = i32::try_from(depths.len()).unwrap_or(i32::MAX).max(2) - 1;
    let all = report.peers.iter().flat_map(|peer| &peer.depths);
    let high = all.map(|point| point.iops.max / 1e3).fold(0.001, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption("Throughput over depth (median; bars from the lowest to the highest round)", CAPTION)
        .margin(12)
        .x_label_area_size(48)
        .y_label_area_size(72)
        .build_cartesian_2d(0..right, 0.0..high)?;
    let label = |x: &i32| {
        let depth = usize::try_from(*x).ok().and_then(|place| depths.get(place));
        depth.map(ToString::to_string).unwrap_or_default()
    };
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(depths.len().max(2))
        .x_desc("iodepth, requests under way in each queue")
        .y_desc("thousand requests/s")
        .axis_desc_style(LABEL)
        .label_style(LABEL)
        .x_label_formatter(&label)
        .y_label_formatter(&|y| format!("{y}"))
        .draw()?;
    for (peer, colour) in report.peers.iter().zip(COLOURS) {
        let points = || (0..).zip(&peer.depths);
        let median = points().map(|(x, point)| (x, point.iops.median / 1e3));
        chart.draw_series(LineSeries::new(median.clone(), colour.stroke_width(2)))?;
        chart.draw_series(median.map(|place| mark(peer, place, colour)))?;
        let bars = points().map(|(x, point)| [(x, point.iops.min / 1e3), (x, point.iops.max / 1e3)]);
        chart.draw_series(bars.map(|bar| PathElement::new(bar, colour.stroke_width(1))))?;
    }
    Ok(())
}
