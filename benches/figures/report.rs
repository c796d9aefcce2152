//! `docs/performance.md` and its plots, from what was just measured.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use plotters::prelude::*;

use crate::growth::Curve;
use crate::measure::{Figure, Series, Unit};

const SIZE: (u32, u32) = (720, 320);
const COLOURS: [RGBColor; 4] =
    [RGBColor(31, 119, 180), RGBColor(214, 96, 39), RGBColor(44, 140, 60), RGBColor(120, 80, 160)];

/// Writes the page and its plots into this folder.
pub fn write(folder: &Path, figures: &[Figure], curves: &[Curve]) {
    let plots = folder.join("performance");
    fs::create_dir_all(&plots).expect("the folder can be made");
    let mut page = include_str!("performance.md.in").replace("MACHINE", &machine());
    let mut summary = String::from("| | figure | measured | wanted | |\n|---|---|---|---|---|\n");
    for figure in figures {
        for ratio in &figure.ratios {
            let verdict = if ratio.value <= ratio.target { "met" } else { "missed" };
            let _ = writeln!(
                summary,
                "| {} | {}: {} | {:.2} | ≤ {:.2} | {verdict} |",
                figure.id, figure.title, ratio.what, ratio.value, ratio.target
            );
        }
    }
    let details: String = figures.iter().map(|figure| detail(&plots, figure)).collect();
    let growth: String = curves.iter().map(|curve| growth(&plots, curve)).collect();
    page = page.replace("SUMMARY", &summary).replace("DETAILS", &details).replace("GROWTH", &growth);
    fs::write(folder.join("performance.md"), page).expect("the page can be written");
}

fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("?", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores of {model}, Linux {}, a shared virtual machine", kernel.trim())
}

fn detail(plots: &Path, figure: &Figure) -> String {
    let mut text = format!("### {} {}\n\n| what | median | p99 | runs |\n|---|---|---|---|\n", figure.id, figure.title);
    for Series { what, unit, samples } in &figure.series {
        let _ = writeln!(
            text,
            "| {what} | {} | {} | {} |",
            unit.say(samples.median()),
            unit.say(samples.bad(*unit)),
            samples.len()
        );
    }
    for note in &figure.notes {
        let _ = write!(text, "\n{note}\n");
    }
    let timed: Vec<&Series> =
        figure.series.iter().filter(|series| series.unit == Unit::Seconds && series.samples.len() > 3).collect();
    if !timed.is_empty() {
        let name = format!("{}.svg", figure.id.to_lowercase());
        distributions(&plots.join(&name), figure, &timed).expect("the plot can be drawn");
        let _ = write!(text, "\n![distribution of {}](performance/{name})\n", figure.id);
    }
    text.push('\n');
    text
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Which share of all runs took at most so long.
fn distributions(file: &Path, figure: &Figure, series: &[&Series]) -> Drawn {
    let milliseconds = |series: &Series| -> Vec<f64> {
        let mut all: Vec<f64> = series.samples.0.iter().map(|value| value * 1e3).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let all: Vec<Vec<f64>> = series.iter().map(|series| milliseconds(series)).collect();
    let least = all.iter().filter_map(|values| values.first()).copied().fold(f64::MAX, f64::min);
    let most = all.iter().filter_map(|values| values.last()).copied().fold(0.0, f64::max);
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{} {}", figure.id, figure.title), ("sans-serif", 15))
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(45)
        .build_cartesian_2d((least * 0.8..most * 1.2).log_scale(), 0.0..1.0)?;
    chart.configure_mesh().x_desc("milliseconds, logarithmic").y_desc("share of runs").draw()?;
    for ((series, values), colour) in series.iter().zip(&all).zip(COLOURS) {
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let points = values.iter().enumerate().map(|(index, value)| (*value, (index + 1) as f64 / values.len() as f64));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(series.what.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}

fn growth(plots: &Path, curve: &Curve) -> String {
    let name = format!("{}.svg", curve.id);
    draw_growth(&plots.join(&name), curve).expect("the plot can be drawn");
    let head = "| p99 | runs |\n|---|---|---|---|---|\n";
    let mut text = format!("### {}\n\n| VMs | {}: median | a VM {head}", curve.title, curve.what);
    for (vms, samples) in &curve.points {
        #[expect(clippy::cast_precision_loss, reason = "at most ten thousand")]
        let each = samples.median() / *vms as f64;
        let [median, each, p99] = [samples.median(), each, samples.p99()].map(|value| Unit::Seconds.say(value));
        let _ = writeln!(text, "| {vms} | {median} | {each} | {p99} | {} |", samples.len());
    }
    let _ = write!(text, "\n{}\n\n![{}](performance/{name})\n\n", curve.verdict(), curve.title);
    text
}

fn draw_growth(file: &Path, curve: &Curve) -> Drawn {
    let most = curve.points.iter().map(|(_, samples)| samples.median() * 1e3).fold(0.0, f64::max);
    let last = curve.points.last().map_or(1, |(vms, _)| *vms);
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(&curve.title, ("sans-serif", 15))
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(55)
        .build_cartesian_2d(0..last + last / 20, 0.0..most * 1.15)?;
    chart.configure_mesh().x_desc("VMs on the host").y_desc("milliseconds").draw()?;
    let points = curve.points.iter().map(|(vms, samples)| (*vms, samples.median() * 1e3));
    chart.draw_series(LineSeries::new(points.clone(), COLOURS[0].stroke_width(2)).point_size(3))?;
    area.present()?;
    Ok(())
}
