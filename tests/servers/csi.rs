//! Speaks to the node's CSI driver through its sockets, as a kubelet does. The tests show that the
//! driver does what CSI's sanity suite asks of every driver, and that it keeps Ion's promises about
//! a pod's tree. The driver has the embedded stores; in one test it has a MongoDB-compatible store.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test that cannot go on panics; it starts programs, and says how long a call took to fail"
)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::support::csi::{CsiRig, KEY, NODE, PodAttempt, key, mounts_below, unpublish};
use crate::support::servers::Mongo;
use crate::support::{CommandOutput, Home, may_mount_or_runs_where_it_may, signal, wait_for};
use futures_util::future::join_all;
use ionfs::csi::DRIVER_NAME;
use ionfs::csi::api::csi::identity_client::IdentityClient;
use ionfs::csi::api::csi::volume_capability::{AccessType, BlockVolume};
use ionfs::csi::api::csi::{
    GetPluginCapabilitiesRequest, GetPluginInfoRequest, GetPluginInfoResponse,
    NodeGetCapabilitiesRequest, NodeGetInfoRequest, NodePublishVolumeRequest, ProbeRequest,
    VolumeCapability,
};
use ionfs::csi::api::registration::registration_client::RegistrationClient;
use ionfs::csi::api::registration::{InfoRequest, RegistrationStatus};
use ionfs::stores::Collection;
use ionfs::stores::open::StoreUrls;
use ionfs::ticket::{Ticket, TicketKey, TokenContent};
use tonic::{Code, Status};

const EVENT: &str = r#"{"eventType": "made", "files": []}"#;

/// How long a call in a tree may take to fail once the tree's daemon has ended. The kernel answers
/// at once; the rest of the time is for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(15);

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, words: &str) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(words), "{words:?} is not in {status:?}");
}

fn folder_of(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

// ---- What CSI asks of every driver ----

#[test]
fn the_driver_tells_who_it_is_and_that_it_is_ready() {
    let rig = CsiRig::new(&[]);
    let (identity, node) = (IdentityClient::new(rig.to_driver()), rig.node());
    rig.runtime.block_on(async {
        let (mut identity, mut node) = (identity, node);
        let info = identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
        // The name is a domain name of at most 63 characters.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
        assert!(!info.name.is_empty() && info.name.len() <= 63 && info.name.bytes().all(plain));
        assert_eq!(
            (info.name.as_str(), info.vendor_version.as_str()),
            (DRIVER_NAME, env!("CARGO_PKG_VERSION"))
        );
        let capabilities =
            identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();
        assert!(capabilities.into_inner().capabilities.is_empty());
        assert_eq!(identity.probe(ProbeRequest {}).await.unwrap().into_inner().ready, Some(true));
        let info = node.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), (NODE, 0));
        let capabilities = node.node_get_capabilities(NodeGetCapabilitiesRequest {}).await.unwrap();
        assert!(capabilities.into_inner().capabilities.is_empty());
    });
}

#[test]
fn a_kubelet_learns_of_the_driver() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut rig = CsiRig::new(&[]);
    let registration = rig.registration();
    let mut registrar = RegistrationClient::new(rig.channel(&registration));
    rig.runtime.block_on(async {
        let info = registrar.get_info(InfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", DRIVER_NAME));
        assert_eq!(info.endpoint, "/var/lib/kubelet/plugins/csi.ionfs/csi.sock");
        assert_eq!(info.supported_versions, ["1.0.0"]);
        for (plugin_registered, error) in [(true, ""), (false, "it is of another version")] {
            let status = RegistrationStatus { plugin_registered, error: error.into() };
            registrar.notify_registration_status(status).await.unwrap();
        }
    });
    wait_for("the driver to log why it is not registered", || {
        rig.driver.as_ref().unwrap().log().contains("it is of another version")
    });
    for socket in [rig.home.path().join("csi.sock"), registration.clone()] {
        assert_eq!(
            fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
            0o600,
            "{socket:?}"
        );
    }
    // A kubelet would go on asking a socket that still exists.
    assert_eq!(rig.driver.take().unwrap().stop(), Some(0));
    assert!(!registration.exists() && !rig.home.path().join("csi.sock").exists());
}

#[test]
fn a_call_that_the_driver_does_not_have_is_unimplemented() {
    let rig = CsiRig::new(&[]);
    let channel = rig.to_driver();
    for path in [
        "/csi.v1.Node/NodeStageVolume",
        "/csi.v1.Node/NodeUnstageVolume",
        "/csi.v1.Node/NodeGetVolumeStats",
        "/csi.v1.Node/NodeExpandVolume",
        "/csi.v1.Controller/CreateVolume",
        "/csi.v1.GroupController/GroupControllerGetCapabilities",
    ] {
        let answer = rig.runtime.block_on(async {
            let mut client = tonic::client::Grpc::new(channel.clone());
            client.ready().await.unwrap();
            let codec =
                tonic_prost::ProstCodec::<GetPluginInfoRequest, GetPluginInfoResponse>::default();
            let request = tonic::Request::new(GetPluginInfoRequest {});
            client.unary(request, path.parse().unwrap(), codec).await
        });
        refused(answer, Code::Unimplemented, "");
    }
}

#[test]
fn what_a_request_lacks_is_an_invalid_argument() {
    let rig = CsiRig::new(&[]);
    let (attempt, target) = (rig.attempt("j"), rig.target("v"));
    let good = rig.request("v", &target, &attempt.token);
    let without = |change: &dyn Fn(&mut NodePublishVolumeRequest)| {
        let mut request = good.clone();
        change(&mut request);
        rig.ask(request)
    };
    let invalid = |answer, words| refused(answer, Code::InvalidArgument, words);
    invalid(without(&|request| request.volume_id.clear()), "volume_id");
    invalid(without(&|request| request.volume_id = "v".repeat(129)), "volume_id");
    for path in ["", "relative", "/", "/a/../../etc"] {
        invalid(without(&|request| request.target_path = path.into()), "target_path");
    }
    invalid(without(&|request| request.volume_capability = None), "volume_capability");
    invalid(
        without(&|request| request.volume_capability = Some(VolumeCapability::default())),
        "access_type",
    );
    let block = Some(AccessType::Block(BlockVolume {}));
    let block = VolumeCapability { access_type: block, access_mode: None };
    invalid(
        without(&|request| request.volume_capability = Some(block.clone())),
        "not a block device",
    );
    invalid(without(&|request| request.readonly = true), "readOnly");
    let set = |key: &'static str, value: &'static str| {
        move |request: &mut NodePublishVolumeRequest| {
            request.volume_context.insert(key.into(), value.into());
        }
    };
    invalid(without(&set("csi.storage.k8s.io/ephemeral", "false")), "ephemeral");
    for key in ["pod.uid", "pod.name", "pod.namespace"] {
        let key = format!("csi.storage.k8s.io/{key}");
        invalid(without(&|request| drop(request.volume_context.remove(&key))), "podInfoOnMount");
    }
    assert!(rig.ticket(&attempt).pod.is_none(), "no invalid request has taken the ticket");
    assert!(!target.exists() && rig.kept().is_empty());
    invalid(rig.unpublish("", &target), "volume_id");
    invalid(rig.unpublish("v", Path::new("")), "target_path");
}

#[test]
fn publishing_again_changes_nothing_and_elsewhere_it_is_there_already() {
    if !may_mount_or_runs_where_it_may(
        "publishing_again_changes_nothing_and_elsewhere_it_is_there_already",
    ) {
        return;
    }
    let rig = CsiRig::new(&[]);
    let (attempt, target) = rig.pod("v");
    fs::write(target.join("out/data/f"), "kept").unwrap();
    rig.publish("v", &target, &attempt).unwrap();
    rig.publish("v", &target.join(""), &attempt).unwrap();
    assert_eq!(fs::read_to_string(target.join("out/data/f")).unwrap(), "kept");
    let other = rig.target("other");
    refused(rig.publish("v", &other, &attempt), Code::AlreadyExists, target.to_str().unwrap());
    // The volume may be unpublished at the other target, where it never was.
    rig.unpublish("v", &other).unwrap();
    assert_eq!(fs::read_to_string(target.join("out/data/f")).unwrap(), "kept");
    assert_eq!(mounts_below(rig.home.path()), [target.as_path()]);
    rig.unpublish("v", &target).unwrap();
    rig.unpublish("v", &target).unwrap();
    assert!(rig.outcome(&attempt).rejections.is_empty());
    refused(rig.publish("v", &target, &attempt), Code::NotFound, "it is over");
    assert!(!target.exists() && target.parent().unwrap().exists());
}

#[test]
fn what_is_not_published_can_be_unpublished() {
    let rig = CsiRig::new(&[]);
    let target = rig.target("v");
    rig.unpublish("v", &target).unwrap();
    fs::create_dir(&target).unwrap();
    rig.unpublish("v", &target).unwrap();
    assert!(!target.exists(), "the driver removes the folder, which the kubelet leaves to it");
    // The driver does not remove what somebody else keeps there.
    fs::create_dir(&target).unwrap();
    fs::write(target.join("f"), "somebody's").unwrap();
    refused(rig.unpublish("v", &target), Code::Internal, "cannot be removed");
    assert_eq!(fs::read_to_string(target.join("f")).unwrap(), "somebody's");
    let (attempt, link) = (rig.attempt("j"), rig.target("link"));
    std::os::unix::fs::symlink(&target, &link).unwrap();
    refused(rig.publish("link", &link, &attempt), Code::Internal, "target cannot be made");
    assert_eq!(fs::read_to_string(target.join("f")).unwrap(), "somebody's");
    assert!(rig.kept().is_empty(), "a call that fails leaves nothing: {:?}", rig.kept());
    fs::remove_file(&link).unwrap();
    fs::remove_dir_all(&target).unwrap();
}

#[test]
fn volumes_come_and_go_many_times_and_side_by_side() {
    if !may_mount_or_runs_where_it_may("volumes_come_and_go_many_times_and_side_by_side") {
        return;
    }
    let rig = CsiRig::new(&[("f", b"content")]);
    for round in 0..20 {
        let (attempt, target) = (rig.attempt(&format!("round-{round}")), rig.target("v"));
        rig.publish("v", &target, &attempt).unwrap();
        assert_eq!(fs::read(target.join("in/data/f")).unwrap(), b"content");
        rig.unpublish("v", &target).unwrap();
        assert!(rig.outcome(&attempt).receipts.is_empty());
    }
    let pods: Vec<(String, PodAttempt, PathBuf)> = (0..24)
        .map(|number| {
            let name = format!("pod-{number}");
            (name.clone(), rig.attempt(&name), rig.target(&name))
        })
        .collect();
    let node = rig.node();
    // Each call is made four times at the same time.
    let four = || pods.iter().flat_map(|pod| [pod; 4]);
    let published = four().map(|(volume, attempt, target)| {
        let (mut node, request) = (node.clone(), rig.request(volume, target, &attempt.token));
        async move { node.node_publish_volume(request).await }
    });
    for answer in rig.runtime.block_on(join_all(published)) {
        answer.unwrap();
    }
    assert_eq!(mounts_below(rig.home.path()).len(), pods.len());
    for (_, attempt, target) in &pods {
        fs::write(target.join("out/events/made.json"), EVENT).unwrap();
        assert!(rig.committed(attempt, "made.json").is_some());
    }
    let unpublished = four().map(|(volume, _, target)| {
        let (mut node, request) = (node.clone(), unpublish(volume, target));
        async move { node.node_unpublish_volume(request).await }
    });
    for answer in rig.runtime.block_on(join_all(unpublished)) {
        answer.unwrap();
    }
    for (_, attempt, _) in &pods {
        assert_eq!(rig.outcome(attempt).receipts.len(), 1);
    }
    // If both calls come at the same time, the driver handles one after the other, in either order.
    for round in 0..10 {
        let name = format!("both-{round}");
        let (attempt, target) = (rig.attempt(&name), rig.target(&name));
        let (mut one, mut other) = (node.clone(), node.clone());
        let (request, undo) =
            (rig.request(&name, &target, &attempt.token), unpublish(&name, &target));
        rig.runtime.block_on(async {
            let both =
                tokio::join!(one.node_publish_volume(request), other.node_unpublish_volume(undo));
            both.0.unwrap();
            both.1.unwrap();
        });
        rig.unpublish(&name, &target).unwrap();
        assert!(rig.outcome(&attempt).rejections.is_empty());
    }
    assert!(mounts_below(rig.home.path()).is_empty());
    assert!(rig.kept().is_empty(), "{:?}", rig.kept());
}

#[test]
fn a_volumes_id_may_be_anything() {
    if !may_mount_or_runs_where_it_may("a_volumes_id_may_be_anything") {
        return;
    }
    let rig = CsiRig::new(&[]);
    let ids = [
        "v".repeat(128),
        "../../../etc/x".into(),
        "a/b".into(),
        ".".into(),
        "z\u{e9} \n\"'$(x)".into(),
        "\0".into(),
    ];
    let mut published = vec![];
    for (number, id) in ids.iter().enumerate() {
        let (attempt, target) =
            (rig.attempt(&format!("j{number}")), rig.target(&number.to_string()));
        rig.publish(id, &target, &attempt).unwrap();
        published.push((id, attempt, target));
    }
    assert_eq!(mounts_below(rig.home.path()).len(), ids.len());
    assert_eq!(folder_of(&rig.home.state().join("volumes")).len(), ids.len());
    for (id, attempt, target) in published {
        rig.unpublish(id, &target).unwrap();
        rig.outcome(&attempt);
    }
    assert!(rig.kept().is_empty());
}

// ---- Tokens ----

#[test]
fn a_token_opens_one_tree_to_one_pod() {
    if !may_mount_or_runs_where_it_may("a_token_opens_one_tree_to_one_pod") {
        return;
    }
    let rig = CsiRig::new(&[]);
    let (attempt, target) = (rig.attempt("j"), rig.target("v"));
    let ask = |token: &str| rig.ask(rig.request("v", &target, token));
    refused(ask(""), Code::InvalidArgument, "only pods that an Ion dispatcher starts have a tree");
    for token in ["x", "ion1.j.1.media.9", "ion2.j.1.media.9.00", &format!("{}0", attempt.token)] {
        refused(ask(token), Code::InvalidArgument, "only pods that a dispatcher starts have one");
    }
    let good = rig.claims(&attempt.job);
    let forger = TicketKey::new(&KEY.replace('0', "1")).unwrap();
    refused(ask(&forger.sign(&good)), Code::PermissionDenied, "the same ION_TICKET_KEY");
    let other = attempt.token.replace("ion1.j.", "ion1.k.");
    refused(ask(&other), Code::PermissionDenied, "the same ION_TICKET_KEY");
    let expired = key().sign(&TokenContent { expires: ionfs::clock::now() - 1, ..good.clone() });
    refused(ask(&expired), Code::PermissionDenied, "the clock");
    let elsewhere = key().sign(&TokenContent { namespace: "other".into(), ..good.clone() });
    refused(ask(&elsewhere), Code::PermissionDenied, "namespace");
    let gone = key().sign(&TokenContent { attempt: 2, ..good });
    refused(ask(&gone), Code::NotFound, "it is over");
    let said = rig.driver.as_ref().unwrap().log();
    assert!(said.contains("a pod gets no tree") && !said.contains(&attempt.token), "{said}");
    assert!(rig.ticket(&attempt).pod.is_none());
    rig.publish("v", &target, &attempt).unwrap();
    // The same pod may publish its volume again. No other pod may publish it.
    rig.publish("v", &target, &attempt).unwrap();
    let thief = rig.target("thief");
    refused(rig.publish("thief", &thief, &attempt), Code::PermissionDenied, "of pod \"pod\"");
    let mut second = rig.request("second", &thief, &attempt.token);
    second.volume_context.insert("csi.storage.k8s.io/pod.uid".into(), "v".into());
    refused(rig.ask(second), Code::PermissionDenied, "volume \"v\"");
    assert_eq!(mounts_below(rig.home.path()), [target.as_path()]);
    fs::write(target.join("out/events/made.json"), EVENT).unwrap();
    rig.unpublish("v", &target).unwrap();
    assert_eq!(rig.outcome(&attempt).receipts.len(), 1);
    // The dispatcher has withdrawn this ticket.
    let (withdrawn, target) = (rig.attempt("w"), rig.target("w"));
    rig.runtime.block_on(Ticket::withdraw(&rig.plane, &withdrawn.ticket())).unwrap();
    refused(rig.publish("w", &target, &withdrawn), Code::NotFound, "it is over");
}

// ---- The tree ----

#[test]
fn a_pod_of_any_user_reads_writes_and_commits_and_its_ticket_says_so() {
    if !may_mount_or_runs_where_it_may(
        "a_pod_of_any_user_reads_writes_and_commits_and_its_ticket_says_so",
    ) {
        return;
    }
    let rig = CsiRig::new(&[("f", b"content\n")]);
    let (attempt, target) = rig.pod("v");
    let script = "set -e; cat in/data/f >out/data/copy; test $(cat in/meta/n) = 7; mkdir out/data/d; echo more >out/data/d/x; \
        echo '{\"eventType\": \"made\", \"files\": [\"copy\", \"d/x\"], \"k\": \"v\"}' >out/events/made.json; \
        test -e events/published/made.json; ! touch in/data/more";
    // A container sees the tree in namespaces of its own, where a user of the image runs.
    let uids = fs::read_to_string("/proc/self/uid_map").unwrap();
    let root = uids.split_whitespace().eq(["0", "0", "4294967295"]);
    let user = if root { "setpriv --reuid=1234 --regid=1234 --clear-groups" } else { "" };
    let inside =
        format!("mount --bind {} /mnt && cd /mnt && exec {user} sh -c \"$0\"", target.display());
    CommandOutput::of(
        Command::new("unshare").args(["-m", "sh", "-c", &inside, script]).output().unwrap(),
    )
    .well();
    let event = rig.committed(&attempt, "made.json").expect("a closed event is committed");
    assert_eq!(
        event.files.iter().map(|file| (file.name.as_str(), file.size)).collect::<Vec<_>>(),
        [("copy", 8), ("d/x", 5)]
    );
    rig.unpublish("v", &target).unwrap();
    let outcome = rig.outcome(&attempt);
    assert_eq!(outcome.receipts.len(), 1);
    assert_eq!(outcome.receipts[0].event_id, event.id);
    assert!(outcome.rejections.is_empty() && outcome.exceeded.is_none());
    let pod = rig.ticket(&attempt).pod.unwrap();
    assert_eq!([pod.uid, pod.name, pod.node, pod.volume], ["v", "pod", NODE, "v"]);
    assert!(!target.exists() && mounts_below(rig.home.path()).is_empty());
    assert!(rig.kept().is_empty(), "nothing of the volume stays on the node: {:?}", rig.kept());
    rig.home.run(["check"]).well();
}

#[test]
fn an_event_that_is_left_open_or_incomplete_is_rejected_and_the_ticket_says_so() {
    let name = "an_event_that_is_left_open_or_incomplete_is_rejected_and_the_ticket_says_so";
    if !may_mount_or_runs_where_it_may(name) {
        return;
    }
    let rig = CsiRig::new(&[]);
    let (attempt, target) = rig.pod("v");
    fs::write(target.join("out/events/half.json"), r#"{"eventType": "ma"#).unwrap();
    // Somebody else on the node holds this file open. The pod's own processes have ended.
    let mut open = fs::File::create(target.join("out/events/open.json")).unwrap();
    open.write_all(br#"{"eventType": "#).unwrap();
    fs::write(target.join("out/events/whole.json"), EVENT).unwrap();
    let begun = Instant::now();
    rig.unpublish("v", &target).unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "a process that holds a file open does not hold up the call"
    );
    let outcome = rig.outcome(&attempt);
    let mut rejected: Vec<_> =
        outcome.rejections.iter().map(|one| (one.name.as_str(), one.errno.name())).collect();
    rejected.sort_unstable();
    assert_eq!(rejected, [("half.json", "EINVAL"), ("open.json", "EINVAL")]);
    assert_eq!(outcome.receipts.len(), 1);
    for file in ["half.json", "open.json"] {
        assert!(rig.committed(&attempt, file).is_none());
    }
    assert!(!target.exists() && rig.kept().is_empty());
    // The rest of the file comes too late. Its event stays rejected.
    let _ = open.write_all(br#""made"}"#);
    drop(open);
    assert!(rig.committed(&attempt, "open.json").is_none());
}

#[test]
fn an_attempt_that_does_not_run_any_more_commits_nothing() {
    if !may_mount_or_runs_where_it_may("an_attempt_that_does_not_run_any_more_commits_nothing") {
        return;
    }
    let rig = CsiRig::new(&[]);
    for (name, state, number) in
        [("queued", "queued", 1), ("cancelled", "cancelled", 1), ("later", "running", 2)]
    {
        let (attempt, target) = rig.pod(name);
        fs::write(target.join("out/events/before.json"), EVENT).unwrap();
        let record = rig.record(name, &attempt.module, state, number);
        rig.runtime.block_on(rig.plane.documents.put(Collection::Jobs, record, None)).unwrap();
        let mut file = fs::File::create(target.join("out/events/after.json")).unwrap();
        file.write_all(EVENT.as_bytes()).unwrap();
        let refused = file.sync_all().unwrap_err().raw_os_error();
        assert_eq!(refused, Some(libc::EIO), "{name}");
        drop(file);
        rig.unpublish(name, &target).unwrap();
        let outcome = rig.outcome(&attempt);
        assert_eq!((outcome.receipts.len(), outcome.rejections.len()), (1, 1), "{name}");
        assert_eq!(
            (outcome.rejections[0].name.as_str(), outcome.rejections[0].errno.name()),
            ("after.json", "EIO")
        );
        assert!(rig.committed(&attempt, "after.json").is_none());
    }
}

// ---- The daemon's end ----

#[test]
fn a_daemon_that_is_told_to_end_takes_its_trees_with_it() {
    if may_mount_or_runs_where_it_may("a_daemon_that_is_told_to_end_takes_its_trees_with_it") {
        ends_with_its_daemon("TERM");
    }
}

#[test]
fn a_daemon_that_is_killed_takes_its_trees_with_it() {
    if may_mount_or_runs_where_it_may("a_daemon_that_is_killed_takes_its_trees_with_it") {
        ends_with_its_daemon("KILL");
    }
}

/// Calls `round` in a thread of its own, again and again, until it fails. The receiver gets the
/// number of rounds that succeeded, the time of the failure and the error.
fn works(
    mut round: impl FnMut(usize) -> std::io::Result<()> + Send + 'static,
) -> mpsc::Receiver<(usize, Instant, std::io::Error)> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for number in 0.. {
            if let Err(error) = round(number) {
                let _ = tell.send((number, Instant::now(), error));
                return;
            }
        }
    });
    told
}

/// The number of events that are finished after the daemon was told to end. With so many of them,
/// the test would see one that slips through.
const HALVES: usize = 16;

fn ends_with_its_daemon(how: &str) {
    let large: Vec<u8> = (0..48_u32 << 20).map(|at| (at / 7) as u8).collect();
    let mut rig = CsiRig::new(&[("large", &large)]);
    let (attempt, target) = rig.pod("v");
    let (idle, idle_target) = rig.pod("idle");
    let at = |path: &str| target.join(path);
    let input = at("in/data/large");
    let reader = works(move |_| {
        let mut file = fs::File::open(&input)?;
        let mut read = vec![0; 1 << 20];
        for piece in large.chunks(1 << 20) {
            file.read_exact(&mut read)?;
            assert!(read == piece, "a read returns what was stored");
        }
        Ok(())
    });
    let data = at("out/data/written");
    let writer = works(move |_| {
        fs::File::options().create(true).append(true).open(&data)?.write_all(&[7; 1 << 20])
    });
    let events = at("out/events");
    let closer = works(move |number| {
        let mut file = fs::File::create(events.join(format!("{number}.json")))?;
        file.write_all(EVENT.as_bytes())?;
        // This commits the event as a close does, and returns whether the commit succeeded.
        file.sync_all()
    });
    let halves = (0..HALVES).map(|number| {
        let mut half = fs::File::create(at(&format!("out/events/half{number}.json"))).unwrap();
        half.write_all(br#"{"eventType": "#).unwrap();
        half
    });
    let halves: Vec<fs::File> = halves.collect();
    wait_for("some events to be committed", || rig.committed(&attempt, "3.json").is_some());
    let driver = rig.driver.take().unwrap();
    let begun = Instant::now();
    signal(driver.pid(), how);
    let mut committed = 0;
    for (who, told) in [("reader", reader), ("writer", writer), ("closer", closer)] {
        let failed = told.recv_timeout(AT_ONCE);
        let (rounds, when, error) = failed.unwrap_or_else(|_| panic!("the {who} hangs"));
        println!(
            "{how}: the {who}'s call failed after {:?}: {error}",
            when.saturating_duration_since(begun)
        );
        if who == "closer" {
            committed = rounds;
        }
    }
    for mut half in halves {
        assert!(half.write_all(br#""made"}"#).and_then(|()| half.sync_all()).is_err());
    }
    let code = driver.wait();
    assert_eq!(code, (how == "TERM").then_some(0));
    // Every event whose commit was answered is there. The event whose commit was not answered is
    // there or not, but never in part.
    for number in 0..committed {
        assert!(
            rig.committed(&attempt, &format!("{number}.json")).is_some(),
            "event {number} is there, because its commit was answered"
        );
    }
    assert!(rig.committed(&attempt, &format!("{}.json", committed + 1)).is_none());
    for number in 0..HALVES {
        let half = format!("half{number}.json");
        assert!(
            rig.committed(&attempt, &half).is_none(),
            "{half} is not there, because it was refused"
        );
    }
    let left = mounts_below(rig.home.path()).len();
    assert_eq!(
        left,
        if how == "TERM" { 0 } else { 2 },
        "only a daemon that was killed leaves trees mounted"
    );
    rig.start();
    assert!(mounts_below(rig.home.path()).is_empty(), "the next daemon unmounts what was left");
    assert!(rig.kept().is_empty(), "{:?}", rig.kept());
    for one in [&attempt, &idle] {
        rig.is_lost(one);
    }
    refused(rig.publish("v", &target, &attempt), Code::NotFound, "it is over");
    for (volume, target) in [("v", &target), ("idle", &idle_target)] {
        rig.unpublish(volume, target).unwrap();
        assert!(!target.exists());
        rig.unpublish(volume, target).unwrap();
    }
    for one in [&attempt, &idle] {
        rig.is_lost(one);
    }
    // The daemon may have been killed between an event's commit and its publication. A dispatcher
    // would publish the event later.
    rig.home.run(["check", "--repair"]).well();
    // The driver serves the pod of the next attempt as if nothing had happened.
    let (next, target) = rig.pod("next");
    fs::write(target.join("out/events/made.json"), EVENT).unwrap();
    rig.unpublish("next", &target).unwrap();
    assert_eq!(rig.outcome(&next).receipts.len(), 1);
}

#[test]
fn a_node_has_one_driver() {
    if !may_mount_or_runs_where_it_may("a_node_has_one_driver") {
        return;
    }
    let rig = CsiRig::new(&[]);
    let (_, target) = rig.pod("v");
    let words = [vec!["csi".to_owned()], rig.words()].concat();
    let second = rig.home.run(words).failed();
    assert!(second.stderr.contains("another daemon serves them"), "{second:#?}");
    // The second driver has removed nothing of the first one, not even its socket.
    fs::write(target.join("out/data/f"), "x").unwrap();
    rig.unpublish("v", &target).unwrap();
}

#[test]
fn a_client_that_says_nothing_does_not_hold_the_daemon() {
    let mut rig = CsiRig::new(&[]);
    let silent = std::os::unix::net::UnixStream::connect(rig.home.path().join("csi.sock")).unwrap();
    let (driver, begun) = (rig.driver.take().unwrap(), Instant::now());
    assert_eq!(driver.stop(), Some(0));
    assert!(
        begun.elapsed() < Duration::from_secs(25),
        "{:?} is too long: a pod has 30 seconds to end",
        begun.elapsed()
    );
    drop(silent);
}

#[test]
fn a_store_that_is_away_is_told_when_it_is_back() {
    if !may_mount_or_runs_where_it_may("a_store_that_is_away_is_told_when_it_is_back") {
        return;
    }
    let mut mongo = Mongo::start();
    let mut home = Home::new();
    let urls = StoreUrls { documents: mongo.database("csi"), ..StoreUrls::embedded(&home.state()) };
    home.env.push(("ION_DOCUMENTS".into(), urls.documents.clone()));
    home.env.push(("ION_COMMIT_DEADLINE".into(), "5s".into()));
    let mut rig = CsiRig::over(home, &urls, &[("f", b"content")]);
    let (attempt, target) = rig.pod("v");
    let (left, left_target) = rig.pod("left");
    let (late, late_target) = (rig.attempt("late"), rig.target("late"));
    let mut event = fs::File::create(target.join("out/events/made.json")).unwrap();
    event.write_all(EVENT.as_bytes()).unwrap();
    event.sync_all().unwrap();
    drop(event);
    mongo.server.kill();
    refused(rig.unpublish("v", &target), Code::Unavailable, "");
    refused(rig.publish("late", &late_target, &late), Code::Unavailable, "");
    // The tree is unmounted all the same, and its event stays committed.
    assert_eq!(mounts_below(rig.home.path()), [left_target.as_path()]);
    mongo.server.start();
    // The test tries again, as a kubelet does.
    wait_for("the stores to answer", || rig.unpublish("v", &target).is_ok());
    let outcome = rig.outcome(&attempt);
    assert_eq!((outcome.receipts.len(), outcome.rejections.len()), (1, 0));
    rig.publish("late", &late_target, &late).unwrap();
    // A daemon that ends while the store stands still leaves the rest to the next daemon.
    mongo.server.pause();
    let (driver, begun) = (rig.driver.take().unwrap(), Instant::now());
    assert_eq!(driver.stop(), Some(0));
    assert!(
        begun.elapsed() < Duration::from_secs(25),
        "{:?} is too long: a pod has 30 seconds to end",
        begun.elapsed()
    );
    mongo.server.resume();
    assert!(mounts_below(rig.home.path()).is_empty());
    rig.start();
    rig.is_lost(&late);
    rig.is_lost(&left);
    refused(rig.publish("left", &left_target, &left), Code::NotFound, "it is over");
    rig.unpublish("left", &left_target).unwrap();
    rig.unpublish("late", &late_target).unwrap();
    assert!(rig.kept().is_empty());
}
