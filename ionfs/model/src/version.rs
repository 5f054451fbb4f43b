//! Versions of modules: what an attempt ran, named by a short text that changes with it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::Millis;

/// A version of a module: 16 hexadecimal digits of the SHA-256 of what its attempts run. The same
/// programs, arguments and environment have the same version on every machine.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModuleVersion(String);

impl ModuleVersion {
    /// The number of hexadecimal digits: 64 bits tell the versions of a module apart, and are short
    /// enough to be read aloud.
    pub const DIGITS: usize = 16;

    /// Makes a version of its text in a document.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the version's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModuleVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ModuleVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModuleVersion({})", self.0)
    }
}

/// The document of a version of a module: what its attempts ran. It names the variables of the
/// module's environment and its secrets, and never has their values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionRecord {
    /// The document's id: see [`VersionRecord::id_of`].
    pub id: String,
    /// The module's name.
    pub module: String,
    /// The version.
    pub version: ModuleVersion,
    /// When an attempt ran it first, by the clock of its dispatcher.
    pub first_seen: Millis,
    /// The programs: one, or one for each link of a chain.
    pub programs: Vec<ProgramRecord>,
    /// The files that belong to the module beside its programs. A pattern that found no file, or
    /// more than count, is one of them without a path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileDigest>,
    /// The names of the variables that the module adds to the environment of its programs.
    #[serde(default)]
    pub env: Vec<String>,
    /// The names of the module's secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
}

impl VersionRecord {
    /// Returns the id of the document of a version.
    pub fn id_of(module: &str, version: &ModuleVersion) -> String {
        format!("{}{version}", Self::id_prefix(module))
    }

    /// Returns what the ids of all versions of a module begin with.
    pub fn id_prefix(module: &str) -> String {
        format!("version/{module}/")
    }

    /// Returns what the version runs in one line: the images and arguments of its programs.
    pub fn command_line(&self) -> String {
        let program = |program: &ProgramRecord| {
            program.image.iter().chain(&program.argv).cloned().collect::<Vec<_>>().join(" ")
        };
        self.programs.iter().map(program).collect::<Vec<_>>().join(" | ")
    }
}

/// One program of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramRecord {
    /// The name of the link that runs it; none outside of chains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// The image that it runs from, as the module names it; none for a program of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The program and its arguments, as the module names them; empty for the program that the
    /// image names.
    pub argv: Vec<String>,
    /// The files that belong to it: the program, arguments that are files, the files of an image on
    /// the machine.
    #[serde(default)]
    pub files: Vec<FileDigest>,
}

/// A file that belongs to a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// The file, as the module names it.
    pub name: String,
    /// Where it was found on the machine; none if it was not found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The SHA-256 of its content, in hexadecimal digits; none if it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}
