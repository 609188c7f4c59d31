//! The report of a run: a Markdown page with plots, and the raw figures as JSON lines.

pub(crate) mod machine;
pub(crate) mod plot;
pub(crate) mod record;
pub(crate) mod table;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use plot::Plot;
use record::Record;
use table::Table;

/// The file name of the page.
const PAGE: &str = "report.md";

/// The file name of the raw figures.
const FIGURES: &str = "figures.jsonl";

/// A section of the page: the text and tables of one round.
#[derive(Debug, Default)]
pub(crate) struct Section {
    pub(crate) title: &'static str,
    /// A description of the measurement.
    pub(crate) text: String,
    pub(crate) tables: Vec<Table>,
    pub(crate) plots: Vec<Plot>,
}

/// A report that grows during the run.
#[derive(Debug)]
pub(crate) struct Report {
    folder: PathBuf,
    figures: File,
    records: Vec<Record>,
    sections: Vec<Section>,
}

impl Report {
    /// Returns an empty report in a folder, replacing an earlier one.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub(crate) fn begin(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let figures = File::create(folder.join(FIGURES))
            .with_context(|| format!("cannot write into {}", folder.display()))?;
        Ok(Self {
            folder: folder.to_owned(),
            figures,
            records: Vec::new(),
            sections: Vec::new(),
        })
    }

    /// Appends a measurement to the file of figures.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn add(&mut self, record: Record) -> anyhow::Result<()> {
        writeln!(self.figures, "{}", record.json())?;
        self.records.push(record);
        Ok(())
    }

    /// Returns the records of one round.
    pub(crate) fn records(&self, round: &str) -> Vec<Record> {
        self.records
            .iter()
            .filter(|record| record.round == round)
            .cloned()
            .collect()
    }

    /// Adds the section of a round.
    pub(crate) fn conclude(&mut self, section: Section) {
        self.sections.push(section);
    }

    /// Writes the page and the plots. Returns the path of the page.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub(crate) fn finish(&self, introduction: &str) -> anyhow::Result<PathBuf> {
        let mut page = format!("# Benchmarks\n\n{introduction}\n");
        for section in &self.sections {
            write!(page, "\n## {}\n\n{}\n", section.title, section.text)?;
            for table in &section.tables {
                write!(page, "\n{}", table.markdown())?;
            }
            for plot in &section.plots {
                if let Some(file) = plot.draw(&self.folder)? {
                    write!(page, "\n![{}](benchmarks/{file})\n", plot.title)?;
                }
            }
        }
        let path = self.folder.join(PAGE);
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}
