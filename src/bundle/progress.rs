//! What is told while it is being done: bars on a terminal, lines elsewhere.

use crate::image::Layer;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// How it is told.
pub enum Progress {
    Bars(MultiProgress),
    Lines,
    Nothing,
}

/// One layer's.
pub struct Bar {
    bar: Option<ProgressBar>,
    /// For a line.
    text: Option<String>,
}

impl Progress {
    /// As stderr is, unless nothing is wanted.
    pub fn new(quiet: bool) -> Self {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Progress::Nothing,
            (false, true) => Progress::Bars(MultiProgress::new()),
            (false, false) => Progress::Lines,
        }
    }

    /// Something that people should know, whatever they want to see of the progress.
    pub fn warn(&self, text: &str) {
        let text = format!("damda bundle: {}", crate::error::escape(text));
        match self {
            Progress::Bars(bars) => drop(bars.println(text)),
            Progress::Lines | Progress::Nothing => eprintln!("{text}"),
        }
    }

    /// A layer is begun.
    pub fn layer(&self, layer: &Layer) -> Bar {
        let size = layer.wanted.size;
        match self {
            Progress::Bars(bars) => {
                let bar = bars.add(ProgressBar::new(size));
                let style = "{prefix:32} [{bar:30}] {bytes:>11} of {total_bytes} {msg}";
                if let Ok(style) = ProgressStyle::with_template(style) {
                    bar.set_style(style.progress_chars("=> "));
                }
                bar.set_prefix(layer.to_string());
                bar.tick();
                Bar { bar: Some(bar), text: None }
            }
            Progress::Lines => Bar { bar: None, text: Some(format!("{layer}: {}", HumanBytes(size))) },
            Progress::Nothing => Bar { bar: None, text: None },
        }
    }
}

impl Bar {
    /// Bytes of the blob so far.
    pub fn at(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        }
    }

    /// The layer is done.
    pub fn done(self, how: &str) {
        if let Some(bar) = self.bar {
            bar.set_position(bar.length().unwrap_or_default());
            bar.finish_with_message(how.to_owned());
        }
        if let Some(text) = self.text {
            eprintln!("{text}, {how}");
        }
    }
}
