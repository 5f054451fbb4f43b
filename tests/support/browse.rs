//! A plane that `ion mount` shows.

use std::process::{Child, Command};

use super::{CommandOutput, Home, signal, wait_for};

/// A plane mounted to browse, which is unmounted at the end.
pub struct BrowsedPlane<'h> {
    home: &'h Home,
    mount: Child,
}

impl<'h> BrowsedPlane<'h> {
    pub fn new(home: &'h Home) -> Self {
        let at = home.path().join("plane");
        let mount = home.ion().arg("mount").arg(&at).spawn().unwrap();
        wait_for("the plane to be mounted", || at.join("correlations").exists());
        Self { home, mount }
    }

    /// Runs a script in the mount, which must exit with 0.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let mut shell = Command::new("sh");
        shell.args(["-ec", script]).current_dir(self.home.path().join("plane"));
        let ran = CommandOutput::of(shell.output().unwrap());
        assert_eq!(ran.code, Some(0), "{script}: {ran:#?}");
        ran.stdout
    }

    pub fn pid(&self) -> u32 {
        self.mount.id()
    }
}

impl Drop for BrowsedPlane<'_> {
    fn drop(&mut self) {
        signal(self.mount.id(), "TERM");
        let _ = self.mount.wait();
    }
}
