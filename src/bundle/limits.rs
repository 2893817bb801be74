//! What an image may cost. Each limit has a default that no ordinary image reaches.

use crate::error::{Error, Result};
use clap::Args;
use serde::{Deserialize, Serialize};

/// Limits on an image.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// bytes that all layers may unpack to, and that a file may have
    #[arg(long = "max-size", value_name = "BYTES", default_value = "64g", value_parser = bytes)]
    pub size: u64,
    /// how many times its compressed size a layer may have (counted from 64 MiB)
    #[arg(long = "max-ratio", value_name = "N", default_value_t = 200)]
    pub ratio: u64,
    /// entries of a layer
    #[arg(long = "max-entries", value_name = "N", default_value_t = 2_000_000)]
    pub entries: u64,
    /// directories above a file
    #[arg(long = "max-depth", value_name = "N", default_value_t = 256)]
    pub depth: usize,
    /// window of a layer that zstd compressed
    #[arg(long = "max-window", value_name = "BYTES", default_value = "8m", value_parser = bytes)]
    pub window: u64,
    /// size of an image's configuration
    #[arg(long = "max-config", value_name = "BYTES", default_value = "4m", value_parser = bytes)]
    pub config: u64,
    /// size of a manifest or an index
    #[arg(long = "max-manifest", value_name = "BYTES", default_value = "4m", value_parser = bytes)]
    pub manifest: u64,
    /// layers of an image
    #[arg(long = "max-layers", value_name = "N", default_value_t = 500)]
    pub layers: usize,
    /// bytes of paths that are kept in mind while a layer is unpacked
    #[arg(long = "max-paths", value_name = "BYTES", default_value = "32m", value_parser = bytes)]
    pub paths: u64,
    /// extended attributes, and extended headers, of an entry together
    #[arg(long = "max-headers", value_name = "BYTES", default_value = "1m", value_parser = bytes)]
    pub headers: u64,
}

/// A ratio says nothing about little: a small file of zeros is nothing to fear.
pub const RATIO_FROM: u64 = 64 << 20;

/// A number of bytes: `4096`, `512k`, `64m`, `2g`, `1t`.
pub fn bytes(text: &str) -> std::result::Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        other => return Err(format!("{other:?} is no unit: k, m, g or t")),
    };
    let number: u64 = digits.parse().map_err(|_| "not a number of bytes, such as 512m".to_owned())?;
    number.checked_mul(1 << unit).ok_or_else(|| "too large".to_owned())
}

/// Whether `value` is within a limit; the error names it, and the option that changes it.
pub fn check(what: &str, value: u64, most: u64, option: &str) -> Result<()> {
    if value <= most {
        return Ok(());
    }
    Err(Error::new(format!("{what}: {value}, the limit is {most}")).hint(format!("{option} changes it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("512M"), Ok(512 << 20));
        assert_eq!(bytes("2gib"), Ok(2 << 30));
        for bad in ["", "m", "-1", "1x", "99999999999g", "1.5g"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_names_the_limit_and_the_option() {
        assert_eq!(
            check("entries", 11, 10, "--max-entries").unwrap_err().to_string(),
            "entries: 11, the limit is 10 (--max-entries changes it)"
        );
    }
}
