//! Changes of attributes, of which a new length also changes the content.

use std::fs::File;

use rustix::fs::{self, Mode, OFlags, Timestamps};

use super::StagedContent;
use crate::eventfile::ContentChange;
use crate::output::handle::StagedHandle;
use crate::output::in_order::InOrder;
use crate::output::request::{AttrChange, SetIdBits, TimeChange};
use crate::output::table::OutputTable;
use crate::{Attr, Ino, Result, errno};

impl StagedContent {
    /// Changes attributes. A new length is set through `through`, the handle that the request
    /// names, if it names one.
    pub(crate) fn setattr(
        &self,
        ino: Ino,
        change: AttrChange,
        through: Option<&StagedHandle>,
        set_id_bits: SetIdBits,
    ) -> Result<Attr> {
        let mut table = self.staging.lock();
        if let Some(size) = change.size {
            self.resize(&mut table, ino, size, through, set_id_bits)?;
        }
        let pinned = self.staging.pin(&table, ino)?;
        if change.uid.is_some() || change.gid.is_some() {
            pinned
                .set_owner(change.uid.map(fs::Uid::from_raw), change.gid.map(fs::Gid::from_raw))?;
        }
        if let Some(mode) = change.mode {
            pinned.set_mode(Mode::from_raw_mode(mode & 0o7777))?;
        }
        if change.atime != TimeChange::Keep || change.mtime != TimeChange::Keep {
            pinned.set_times(&Timestamps {
                last_access: change.atime.timespec(),
                last_modification: change.mtime.timespec(),
            })?;
        }
        table.note_change(ino);
        self.staging.attr(&table, ino)
    }

    fn resize(
        &self,
        table: &mut OutputTable,
        ino: Ino,
        size: u64,
        through: Option<&StagedHandle>,
        set_id_bits: SetIdBits,
    ) -> Result<()> {
        table.check_change(ino)?;
        table.file(ino)?;
        let opened;
        let backing = match through.filter(|staged| staged.ino() == ino && staged.writes()) {
            Some(staged) => staged.file(),
            None => {
                opened = self.staging.open_file(table, ino, OFlags::WRONLY)?;
                &opened
            }
        };
        clear_set_id_bits(backing, set_id_bits)?;
        // Bytes that are a blob's take no room on the staging disk.
        let takes = table
            .file(ino)?
            .reference
            .as_ref()
            .is_none_or(|reference| reference.takes_room_at(size));
        self.staging.limits().charge(table, ino, if takes { size } else { 0 })?;
        let file = table.file_mut(ino)?;
        backing.set_len(size).map_err(|error| errno(&error))?;
        if file.failed.is_some_and(|write| write.at >= size) {
            file.failed = None;
        }
        match &mut file.reference {
            Some(reference) if size > 0 => reference.resize(size),
            reference => *reference = None,
        }
        file.note_change(ContentChange::Resized);
        file.in_order = (size == 0).then(InOrder::default);
        Ok(())
    }
}

/// Clears the set-user-ID and set-group-ID bits of a file, unless the user who changes it may keep
/// them.
pub(super) fn clear_set_id_bits(file: &File, set_id_bits: SetIdBits) -> Result<()> {
    if set_id_bits == SetIdBits::Keep {
        return Ok(());
    }
    let mode = fs::fstat(file)?.st_mode & 0o7777;
    // Without the group's right to execute, the set-group-ID bit means a mandatory lock and stays.
    let group = if mode & libc::S_IXGRP == 0 { 0 } else { libc::S_ISGID };
    let kept = mode & !(libc::S_ISUID | group);
    if kept == mode { Ok(()) } else { fs::fchmod(file, Mode::from_raw_mode(kept)) }
}
