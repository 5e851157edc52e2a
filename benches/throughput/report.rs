//! What was measured, printed and written: the one place for both.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::measured::Runs;

/// Where it is written.
const PAGE: &str = "docs/benchmarks.md";
const PLOTS: &str = "benchmarks";
/// Between these lines of the page stands what is generated; the rest is kept.
const BEGIN: &str = "<!-- bench:begin -->";
const END: &str = "<!-- bench:end -->";

/// One measured figure and what was asked of it.
pub struct Figure {
    pub what: String,
    pub measured: String,
    /// Empty: nothing was asked.
    pub asked: String,
    pub met: Option<bool>,
}

/// A part of the page.
pub struct Section {
    pub title: String,
    /// Markdown: what was run, and how.
    pub says: String,
    pub figures: Vec<Figure>,
    pub plot: Option<Plot>,
}

/// Horizontal bars.
pub struct Plot {
    /// Its name, `history.svg`.
    pub file: String,
    pub unit: String,
    /// Those whose label begins with `chaintap` stand out.
    pub bars: Vec<(String, f64)>,
}

impl Figure {
    /// One of which nothing is asked.
    pub fn told(what: &str, measured: String) -> Self {
        Self { what: what.to_owned(), measured, asked: String::new(), met: None }
    }

    fn verdict(&self) -> &'static str {
        match self.met {
            None => "",
            Some(true) => "met",
            Some(false) => "**not met**",
        }
    }
}

impl Section {
    /// As Markdown, without its plot.
    fn text(&self) -> String {
        let mut text = format!(
            "### {}\n\n{}\n\n| what | measured | asked | |\n| --- | --- | --- | --- |\n",
            self.title, self.says
        );
        for figure in &self.figures {
            let Figure { what, measured, asked, .. } = figure;
            writeln!(text, "| {what} | {measured} | {asked} | {} |", figure.verdict()).unwrap();
        }
        text
    }

    /// Says it as soon as it is known.
    pub fn print(&self) {
        println!("{}", self.text());
    }
}

/// Wall time, processor time and memory of some runs, and what they did a second.
pub fn figures(runs: &Runs, rate: Option<f64>) -> String {
    let mut text = format!("{:.2} s, {:.2} CPU s, {:.0} MiB", runs.wall(), runs.cpu(), runs.peak());
    if let Some(rate) = rate {
        write!(text, ", {} logs/s", count((rate / 1_000.0).round() as u64 * 1_000)).unwrap();
    }
    text
}

/// A number with its thousands apart.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && place % 3 == first {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Rewrites the generated part of the page, and the plots.
pub fn write(sections: &[Section]) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let plots = page.with_file_name(PLOTS);
    fs::create_dir_all(&plots).unwrap();
    let mut generated = format!("{BEGIN}\n\n{}\n", machine());
    for section in sections {
        writeln!(generated, "\n{}", section.text()).unwrap();
        if let Some(plot) = &section.plot {
            draw(plot, &plots.join(&plot.file));
            writeln!(generated, "![{}]({PLOTS}/{})", section.title, plot.file).unwrap();
        }
    }
    let before = fs::read_to_string(&page).unwrap();
    let (above, rest) = before.split_once(BEGIN).unwrap();
    let (_, below) = rest.split_once(END).unwrap();
    fs::write(&page, format!("{above}{generated}\n{END}{below}")).unwrap();
}

/// What all this ran on.
fn machine() -> String {
    let told = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor =
        told.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let cores = std::thread::available_parallelism().unwrap();
    let compiler = Command::new("rustc").arg("--version").output().map(|told| told.stdout).unwrap_or_default();
    format!(
        "Measured on {cores} cores of {}, with {}.",
        processor.unwrap_or("an unknown processor"),
        String::from_utf8_lossy(&compiler).trim()
    )
}

const WIDTH: u32 = 860;
const LABELS: i32 = 280;
const ROOM: f64 = 440.0;
const STEP: i32 = 30;
const BAR: i32 = 18;
const MARGIN: i32 = 16;
const OURS: RGBColor = RGBColor(0xd9, 0x5f, 0x02);
const OTHERS: RGBColor = RGBColor(0xb0, 0xb7, 0xbf);
const INK: RGBColor = RGBColor(0x24, 0x29, 0x2f);

/// On white, which can be read on any page.
fn draw(plot: &Plot, path: &Path) {
    let height = 2 * MARGIN + STEP * i32::try_from(plot.bars.len()).unwrap();
    let canvas = SVGBackend::new(path, (WIDTH, height.unsigned_abs())).into_drawing_area();
    canvas.fill(&WHITE).unwrap();
    let most = plot.bars.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let ink = TextStyle::from(("sans-serif", 16).into_font()).color(&INK);
    for (index, (label, value)) in plot.bars.iter().enumerate() {
        let top = MARGIN + STEP * i32::try_from(index).unwrap() + (STEP - BAR) / 2;
        let right = LABELS + (ROOM * value / most) as i32;
        let color = if label.starts_with("chaintap") { OURS } else { OTHERS };
        canvas.draw(&Rectangle::new([(LABELS, top), (right, top + BAR)], color.filled())).unwrap();
        let middle = top + BAR / 2;
        let beside = |at: i32, side| (at, ink.pos(Pos::new(side, VPos::Center)));
        let (at, style) = beside(LABELS - 10, HPos::Right);
        canvas.draw(&Text::new(label.clone(), (at, middle), style)).unwrap();
        let (at, style) = beside(right + 8, HPos::Left);
        canvas.draw(&Text::new(told(*value, &plot.unit), (at, middle), style)).unwrap();
    }
    canvas.present().unwrap();
}

fn told(value: f64, unit: &str) -> String {
    if value >= 1_000.0 { format!("{} {unit}", count(value.round() as u64)) } else { format!("{value:.2} {unit}") }
}
