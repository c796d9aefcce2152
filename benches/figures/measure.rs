//! Durations as they were measured, and what is said of them.

use std::fmt;
use std::time::Duration;

/// Measured values of one kind, in the order in which they were taken.
#[derive(Debug, Clone, Default)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    pub fn push(&mut self, value: Duration) {
        self.0.push(value.as_secs_f64());
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The value below which this share of all lie.
    pub fn quantile(&self, share: f64) -> f64 {
        let sorted = self.sorted();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = (share * (sorted.len().saturating_sub(1)) as f64).round() as usize;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    }

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub fn p99(&self) -> f64 {
        self.quantile(0.99)
    }

    /// The value that all but one of a hundred are no worse than: of rates the slow ones are the bad.
    pub fn bad(&self, unit: Unit) -> f64 {
        if unit == Unit::PerSecond { self.quantile(0.01) } else { self.p99() }
    }

    /// Its median, its p99 and how many there are.
    pub fn say(&self, unit: Unit) -> String {
        format!("median {}, p99 {}, {} runs", unit.say(self.median()), unit.say(self.bad(unit)), self.len())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// What the values of a series are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    Bytes,
    Count,
    PerSecond,
}

impl Unit {
    /// A value as a person reads it.
    pub fn say(self, value: f64) -> String {
        match self {
            Self::Seconds if value < 1e-3 => format!("{:.0} µs", value * 1e6),
            Self::Seconds if value < 1.0 => format!("{:.2} ms", value * 1e3),
            Self::Seconds => format!("{value:.2} s"),
            Self::Bytes if value < f64::from(1 << 20) => format!("{:.1} KiB", value / f64::from(1 << 10)),
            Self::Bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
            Self::Count => format!("{value:.0}"),
            Self::PerSecond => format!("{value:.0}/s"),
        }
    }
}

/// One thing that was measured again and again.
#[derive(Debug, Clone)]
pub struct Series {
    pub what: String,
    pub unit: Unit,
    pub samples: Samples,
}

impl Series {
    pub fn new(what: impl Into<String>, unit: Unit, samples: Samples) -> Self {
        Self { what: what.into(), unit, samples }
    }
}

/// Two numbers against each other, and how they should be.
#[derive(Debug, Clone)]
pub struct Ratio {
    pub what: String,
    pub value: f64,
    /// The most it may be.
    pub target: f64,
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.value <= self.target { "met" } else { "missed" };
        write!(f, "{}: {:.2}, at most {:.2} wanted: {verdict}", self.what, self.value, self.target)
    }
}

/// One of the eight figures.
#[derive(Debug, Clone)]
pub struct Figure {
    pub id: &'static str,
    pub title: String,
    pub series: Vec<Series>,
    pub ratios: Vec<Ratio>,
    pub notes: Vec<String>,
}

impl Figure {
    pub fn new(id: &'static str, title: impl Into<String>) -> Self {
        Self { id, title: title.into(), series: Vec::new(), ratios: Vec::new(), notes: Vec::new() }
    }

    pub fn add(&mut self, what: impl Into<String>, unit: Unit, samples: Samples) {
        self.series.push(Series::new(what, unit, samples));
    }

    pub fn ratio(&mut self, what: impl Into<String>, value: f64, target: f64) {
        self.ratios.push(Ratio { what: what.into(), value, target });
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}", self.id, self.title)?;
        for Series { what, unit, samples } in &self.series {
            writeln!(f, "  {what}: {}", samples.say(*unit))?;
        }
        for ratio in &self.ratios {
            writeln!(f, "  {ratio}")?;
        }
        for note in &self.notes {
            writeln!(f, "  {note}")?;
        }
        Ok(())
    }
}
