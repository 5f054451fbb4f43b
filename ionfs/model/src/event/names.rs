//! The names that modules give: paths below `out/data`, event files, event types.

/// Returns a path below `out/data` from an event file without `./` and doubled slashes; `None` if
/// the path is absolute or empty, or has a `..` component or a zero byte.
pub fn clean_path(path: &str) -> Option<String> {
    if path.starts_with('/') || path.contains('\0') {
        return None;
    }
    let parts: Vec<&str> =
        path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    (!parts.is_empty() && !parts.contains(&"..")).then(|| parts.join("/"))
}

/// Whether a name in `out/events` is a draft: the file is no event until it is renamed.
pub fn is_event_draft(name: &str) -> bool {
    is_draft(name) || is_doubtful_draft(name)
}

/// Whether a name in `out/events` has the form of a draft's name, but could also be meant as an
/// event's name. If such a file holds a complete event when its job ends, it was not meant as a
/// draft.
///
/// Python's `tempfile` makes names of `tmp` and eight lowercase letters, digits or `_`. Many
/// programs append a number to the name that they will rename the file to: `made.json.4711`.
pub fn is_doubtful_draft(name: &str) -> bool {
    let has_number = |(stem, number): (&str, &str)| {
        !stem.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    };
    is_python_temporary(name) || name.rsplit_once('.').is_some_and(has_number)
}

/// Whether a name is one that Python's `tempfile` makes.
fn is_python_temporary(name: &str) -> bool {
    name.strip_prefix("tmp").is_some_and(|rest| {
        rest.len() == 8
            && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    })
}

/// Why a [doubtful draft](is_doubtful_draft) that holds a complete event at the job's end is
/// refused.
pub const DOUBTFUL_DRAFT_REASON: &str = "it is a whole event under the name of a draft (`tmp` and 8 letters, or a number at its end), so \
                               nothing was published; rename the file once it is complete, or write it under another name";

/// Whether a name is that of a file which will be renamed. `sed -i` writes its result to a new file
/// beside the old one, named `sed` and six letters or digits, and renames it, so such a name is a
/// draft too.
pub fn is_draft(name: &str) -> bool {
    let is_sed_temp = name.len() == 9
        && name.starts_with("sed")
        && name.bytes().all(|b| b.is_ascii_alphanumeric());
    is_sed_temp
        || name.starts_with('.')
        || [".tmp", ".part", ".swp", "~"].iter().any(|end| name.ends_with(end))
}

/// The endings of names under which programs write what they have not finished, in lower case.
const PARTIAL_ENDINGS: [&str; 19] = [
    "~",
    ".tmp",
    ".temp",
    ".swp",
    // Firefox, KDE and yt-dlp; rclone and Internet Explorer; WinSCP; many others.
    ".part",
    ".partial",
    ".filepart",
    ".incomplete",
    // Chrome and Edge; Chrome's file system API; Opera; Safari; WebKitGTK.
    ".crdownload",
    ".crswap",
    ".opdownload",
    ".download",
    ".wkdownload",
    // Download managers: aria2, yt-dlp, Free Download Manager, qBittorrent, uTorrent, BitComet.
    ".aria2",
    ".ytdl",
    ".fdmdownload",
    ".!qb",
    ".!ut",
    ".bc!",
];

/// Whether a name in an inbox is a draft: the file or folder is no event until it is renamed.
///
/// More names are drafts here than in `out/events`, because browsers and download managers write
/// here. A number at the end makes none: what people put here has any names.
pub fn is_inbox_draft(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    name.starts_with('.')
        || is_python_temporary(name)
        || PARTIAL_ENDINGS.iter().any(|ending| lower.ends_with(ending))
}

/// The most bytes of an event type. AMQP's routing keys and file names have at most 255 bytes; the
/// difference is left for the text that stands beside the type in them.
pub const TYPE_BYTES_MAX: usize = 200;

/// Whether a text can be an event type: at most [`TYPE_BYTES_MAX`] bytes of ASCII letters, digits,
/// `.`, `_` and `-`, beginning with a letter or a digit. An event type is a routing key and part of
/// names and paths.
pub fn is_event_type(text: &str) -> bool {
    text.len() <= TYPE_BYTES_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}
