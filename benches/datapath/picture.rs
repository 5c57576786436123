//! The picture: a panel for each place and unit, a group of bars for each workload, a bar for each
//! back end, with a whisker from the smallest to the largest round.
//!
//! It is read on light and on dark pages: the background is transparent, text and lines are of a
//! grey that both carry, and the colours are of a set that colour-blind readers can tell apart
//! (Okabe and Ito's).

use std::fmt::Write;

use super::harness::statistics::Spread;
use super::harness::workload::Workload;
use super::report::{Report, in_unit, unit};

/// As SVG.
pub fn draw(reports: &[Report]) -> String {
    let mut drawing = Drawing { body: String::new(), y: MARGIN };
    for report in reports {
        for in_bytes in [false, true] {
            drawing.panel(report, in_bytes);
        }
    }
    let height = drawing.y;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"{INK}\" role=\"img\">\n\
         <title>Throughput of sealblk and its peers</title>\n{}</svg>\n",
        drawing.body
    )
}

struct Drawing {
    body: String,
    y: f64,
}

impl Drawing {
    fn panel(&mut self, report: &Report, in_bytes: bool) {
        let chosen = |workload: &Workload| workload.in_bytes() == in_bytes;
        let groups: Vec<usize> =
            (0..report.workloads.len()).filter(|index| chosen(&report.workloads[*index])).collect();
        let Some(first) = groups.first() else { return };
        let unit = match unit(&report.workloads[*first]) {
            "kop/s" => "thousand requests a second",
            unit => unit,
        };
        self.text(
            MARGIN,
            self.y + 14.0,
            "font-size=\"15\" font-weight=\"bold\"",
            &format!("On {}: {unit}", report.medium()),
        );
        self.y += 24.0;
        let spreads = |group: &usize| {
            report.backends.iter().map(|column| throughput(report, *group, &column.samples[*group])).collect()
        };
        let spreads: Vec<Vec<Spread>> = groups.iter().map(spreads).collect();
        let largest = spreads.iter().flatten().map(|spread| spread.max).fold(0.0, f64::max);
        let scale = Scale::up_to(largest);
        for (group, spreads) in groups.iter().zip(&spreads) {
            self.group(report, *group, spreads, &scale);
        }
        self.axis(&scale);
    }

    fn group(&mut self, report: &Report, group: usize, spreads: &[Spread], scale: &Scale) {
        self.text(MARGIN, self.y + 11.0, "font-weight=\"bold\"", report.workloads[group].name);
        self.y += 18.0;
        self.grid(spreads.len(), scale);
        for ((column, spread), colour) in report.backends.iter().zip(spreads).zip(COLOURS.iter().cycle()) {
            let (y, width) = (self.y, scale.width(spread.median));
            let middle = y + BAR / 2.0;
            let [from, to] = [spread.min, spread.max].map(|value| LEFT + scale.width(value));
            let _ = writeln!(
                self.body,
                "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\n\
                 <path d=\"M{from:.1} {middle:.1}H{to:.1}M{from:.1} {:.1}v6M{to:.1} {:.1}v6\" stroke=\"{INK}\" fill=\"none\"/>",
                middle - 3.0,
                middle - 3.0,
            );
            self.text(LEFT - 6.0, y + 11.0, "text-anchor=\"end\" font-size=\"11\"", column.kind.name);
            let mut label = short(spread.median);
            if column.kind.id != report.backends[0].kind.id {
                let ratio = report.ratio(group, column);
                let _ = write!(
                    label,
                    "  ({} is {:.2}×, {:.2}–{:.2})",
                    report.backends[0].kind.name, ratio.median, ratio.min, ratio.max
                );
            }
            self.text(to.max(LEFT + width) + 6.0, y + 11.0, "font-size=\"11\"", &label);
            self.y += BAR + GAP;
        }
        self.y += 9.0;
    }

    /// The lines behind the bars of a group.
    fn grid(&mut self, bars: usize, scale: &Scale) {
        let (top, height) = (self.y - 2.0, bars as f64 * (BAR + GAP) + 2.0);
        for value in scale.steps() {
            let x = LEFT + scale.width(value);
            let opacity = if value == 0.0 { 1.0 } else { 0.3 };
            let _ = writeln!(
                self.body,
                "<path d=\"M{x:.1} {top:.1}v{height:.1}\" stroke=\"{INK}\" stroke-opacity=\"{opacity}\"/>"
            );
        }
    }

    fn axis(&mut self, scale: &Scale) {
        for value in scale.steps() {
            let x = LEFT + scale.width(value);
            self.text(x, self.y + 6.0, "text-anchor=\"middle\" font-size=\"11\"", &short(value));
        }
        self.y += 44.0;
    }

    fn text(&mut self, x: f64, y: f64, attributes: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(self.body, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{text}</text>");
    }
}

fn throughput(report: &Report, group: usize, samples: &[super::harness::load::Sample]) -> Spread {
    Spread::of(samples.iter().map(|sample| in_unit(&report.workloads[group], sample.operations)))
}

/// An axis that ends just beyond the largest value, with a handful of round steps.
struct Scale {
    end: f64,
    step: f64,
}

impl Scale {
    fn up_to(largest: f64) -> Self {
        let rough = (largest / 5.0).max(f64::MIN_POSITIVE);
        let magnitude = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * magnitude).into_iter().find(|step| *step >= rough);
        Self { end: largest, step: step.unwrap_or(rough) }
    }

    fn steps(&self) -> impl Iterator<Item = f64> {
        let Self { end, step } = *self;
        (0..).map(move |index| f64::from(index) * step).take_while(move |value| *value <= end)
    }

    fn width(&self, value: f64) -> f64 {
        value / self.end * ROOM
    }
}

fn short(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 16.0;
/// Where bars begin, how far the longest goes, and how thick they are.
const LEFT: f64 = 160.0;
const ROOM: f64 = 540.0;
const BAR: f64 = 14.0;
const GAP: f64 = 3.0;
const INK: &str = "#7d8590";
const COLOURS: [&str; 6] = ["#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7"];
