//! Environment variables: read, checked, and told of when they are wrong.

use std::env::{self, VarError};
use std::path::{Path, PathBuf};

use super::Outcome;

/// The variable's text; empty is as good as not set.
pub fn text(name: &str) -> Outcome<Option<String>> {
    match env::var(name) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => Ok(Some(text)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(format!("{name}: this is not UTF-8").into()),
    }
}

/// The variable's number, within its bounds.
pub fn number(name: &str, default: f64, min: f64, max: f64) -> Outcome<f64> {
    let Some(text) = text(name)? else { return Ok(default) };
    match text.parse::<f64>() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("{name}={text}: it must be a number from {min} to {max}").into()),
    }
}

/// Those whose id contains one of the parts that the variable lists.
pub fn chosen<T>(name: &str, all: Vec<T>, id: impl Fn(&T) -> &'static str) -> Outcome<Vec<T>> {
    let Some(list) = text(name)? else { return Ok(all) };
    let ids = all.iter().map(&id).collect::<Vec<_>>().join(", ");
    for part in list.split(',') {
        if !all.iter().any(|item| id(item).contains(part.trim())) {
            return Err(format!("{name}={list}: {part:?} is in none of {ids}").into());
        }
    }
    Ok(all.into_iter().filter(|item| list.split(',').any(|part| id(item).contains(part.trim()))).collect())
}

/// Where results go: `OUT`, or `benchmarks` in the target folder.
pub fn out() -> Outcome<PathBuf> {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    Ok(text("OUT")?.map_or_else(|| tmp.parent().unwrap_or(tmp).join("benchmarks"), PathBuf::from))
}

/// Writes one of them and says where.
pub fn write_result(name: &str, content: &str) -> Outcome<()> {
    let path = out()?.join(name);
    let written = std::fs::create_dir_all(path.parent().unwrap_or(&path)).and_then(|()| std::fs::write(&path, content));
    written.map_err(|error| format!("{}: {error}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}
