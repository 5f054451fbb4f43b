//! Shows what Ion says when RabbitMQ refuses it a right, when somebody has changed Ion's queues
//! there, and when two planes share one bus.

use std::path::PathBuf;

use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;

use super::home_on_bus;
use crate::support::servers::Rabbit;
use crate::support::{Home, wait_for};

fn pipeline(home: &Home) -> PathBuf {
    home.program("work", "#!/bin/sh\n:\n");
    home.write("pipeline.yaml", "modules:\n  work: {on: [go], run: [./work]}\n")
}

/// Acts on the broker as a person with an AMQP client does.
fn by_hand<T>(url: &str, act: impl AsyncFnOnce(lapin::Channel) -> Result<T, lapin::Error>) -> T {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let properties = lapin::ConnectionProperties::default();
        let connection =
            lapin::Connection::connect(url.trim_end_matches('/'), properties).await.unwrap();
        act(connection.create_channel().await.unwrap()).await.unwrap()
    })
}

#[test]
fn a_missing_right_is_named_with_what_grants_it() {
    let rabbit = Rabbit::start();
    let own = r"^ion\.";
    let cases = [
        ("nothing", ["", own, own], "configure exchange \"ion.events\""),
        ("unwriting", [own, "", own], "write exchange \"ion.plane."),
        ("unreading", [own, ".*", ""], "read exchange \"ion.plane\""),
        ("unsending", [own, own, own], "write exchange \"amq.default\""),
        (
            "elsewhere",
            [r"^ion\.(events|dead|plane)", ".*", ".*"],
            "configure or read queue \"ion.module.",
        ),
    ];
    for (user, rights, missing) in cases {
        let home = home_on_bus(&rabbit.user(user, rights));
        let file = pipeline(&home);
        // The plane gets its id when it is first used, and does not need the broker for that.
        home.run(["run", "--", "true"]).well();
        let doctor = home.run(["doctor"]).failed().stdout;
        let grant = format!("rabbitmqctl set_permissions -p '{user}' '{user}' 'ion\\..*'");
        assert!(doctor.contains(missing) && doctor.contains(&grant), "{user}: {doctor}");
        assert!(!doctor.contains("knows no such user"), "{user}: {doctor}");
        if user != "unsending" {
            let refused = home.run(["up", file.to_str().unwrap()]).failed().stderr;
            assert!(refused.contains(missing) && refused.contains(&grant), "{user}: {refused}");
        }
    }
    rabbit.ctl(&["add_vhost", "closed"]);
    let own = rabbit.user("outside", ["", "", ""]);
    let closed = home_on_bus(&format!("{}/closed", own.strip_suffix("/outside").unwrap()));
    let doctor = closed.run(["doctor"]).failed().stdout;
    assert!(doctor.contains("vhost \"closed\" is closed to user \"outside\""), "{doctor}");
}

#[test]
fn what_was_done_to_the_queues_is_said_with_the_way_out() {
    const QUEUE: &str = "ion.module.work";
    let rabbit = Rabbit::start();
    let home = home_on_bus(&rabbit.url);
    let file = pipeline(&home);
    assert_eq!(home.up(&file).stop(), Some(0));
    let doctor = home.run(["doctor"]).well().stdout;
    assert!(doctor.contains("work (0 waiting)"), "{doctor}");
    // A policy takes messages off the queue.
    rabbit.ctl(&[
        "set_policy",
        "--apply-to",
        "queues",
        "old",
        "^ion[.]module",
        "{\"message-ttl\": 1}",
    ]);
    home.run(["event", "create", "go"]).well();
    wait_for("the policy to take the message off", || {
        let doctor = home.run(["doctor"]).stdout;
        doctor.contains(
            "a policy with message-ttl takes messages off queue \"ion.module.work\", 1 so far",
        ) && doctor.contains("it was published and did not arrive")
    });
    let up = home.up(&file);
    wait_for("the dispatcher to warn", || {
        up.log().contains("a policy with message-ttl takes messages off")
    });
    assert_eq!(up.stop(), Some(0));
    rabbit.ctl(&["clear_policy", "old"]);
    // A person puts another queue in its place.
    by_hand(&rabbit.url, async |channel| {
        channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await?;
        channel
            .queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), FieldTable::default())
            .await
    });
    let doctor = home.run(["doctor"]).failed().stdout;
    assert!(
        doctor.contains("queue \"ion.module.work\" is there and is not as Ion declares it"),
        "{doctor}"
    );
    assert!(
        doctor.contains("inequivalent arg") && doctor.contains("delete_queue 'ion.module.work'"),
        "{doctor}"
    );
    let refused = home.run(["up", file.to_str().unwrap()]).failed().stderr;
    assert!(refused.contains("delete_queue 'ion.module.work'"), "{refused}");
    // Once the queue is right, a dispatcher sends the messages again that the other queue and the
    // policy took.
    home.run(["event", "create", "go"]).well();
    by_hand(&rabbit.url, async |channel| {
        channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await
    });
    let in_state = |state: &str| home.jobs().iter().filter(|job| job["state"] == state).count();
    let up = home.up_with(&["--lease", "2s", "--jobs", "1"], &file);
    wait_for("the jobs of the messages that were lost", || in_state("succeeded") == 2);
    // A policy comes while a dispatcher serves the queue and its only slot is taken.
    let go = home.path().join("go");
    home.program(
        "work",
        &format!("#!/bin/sh\nuntil [ -e {} ]; do sleep 0.1; done\n", go.display()),
    );
    home.run(["event", "create", "go"]).well();
    wait_for("a job to take the slot", || in_state("running") == 1);
    rabbit.ctl(&[
        "set_policy",
        "--apply-to",
        "queues",
        "short",
        "^ion[.]module",
        "{\"message-ttl\": 1}",
    ]);
    let told = || up.log().matches("a policy with message-ttl takes messages off").count();
    let before = told();
    // Until the dispatcher pauses its subscription, it may take a message before the policy does.
    let mut created = 3;
    wait_for("the dispatcher to warn again", || {
        home.run(["event", "create", "go"]).well();
        created += 1;
        told() > before
    });
    rabbit.ctl(&["clear_policy", "short"]);
    std::fs::write(&go, "").unwrap();
    wait_for("the job of each event", || in_state("succeeded") == created);
    assert_eq!(up.stop(), Some(0));
    // A person deletes the queue.
    by_hand(&rabbit.url, async |channel| {
        channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await
    });
    let doctor = home.run(["doctor"]).failed().stdout;
    assert!(doctor.contains("queue \"ion.module.work\" of module \"work\" is missing"), "{doctor}");
}

#[test]
fn a_second_plane_on_one_virtual_host_is_refused_at_its_start() {
    let rabbit = Rabbit::start();
    let (one, two) = (home_on_bus(&rabbit.url), home_on_bus(&rabbit.url));
    let files = [&one, &two].map(pipeline);
    let up = one.up(&files[0]);
    let refused = two.run(["up", files[1].to_str().unwrap()]).failed();
    assert!(refused.stderr.contains("each plane needs a virtual host of its own"), "{refused:#?}");
    let doctor = two.run(["doctor"]).failed().stdout;
    assert!(doctor.contains("this virtual host belongs to plane"), "{doctor}");
    one.run(["event", "create", "go", "--wait"]).well();
    assert_eq!(up.stop(), Some(0));
    // The first plane keeps its virtual host even if its mark is missing there, as it is beside the
    // queues of an earlier Ion.
    one.run(["event", "create", "go"]).well();
    by_hand(&rabbit.url, async |channel| {
        channel.exchange_delete("ion.plane".into(), ExchangeDeleteOptions::default()).await
    });
    let up = one.up(&files[0]);
    wait_for("the job of the message that waited in the queue", || {
        one.jobs().iter().filter(|job| job["state"] == "succeeded").count() == 2
    });
    two.run(["up", files[1].to_str().unwrap()]).failed();
    let mut elsewhere = two;
    elsewhere.env = vec![("ION_BUS".into(), rabbit.virtual_host("two"))];
    let second = elsewhere.up(&files[1]);
    elsewhere.run(["event", "create", "go", "--wait"]).well();
    assert_eq!((up.stop(), second.stop()), (Some(0), Some(0)));
    // A file that is only a bus belongs to one plane, too.
    let file = format!("sqlite://{}", elsewhere.path().join("bus.db").display());
    let (three, four) = (home_on_bus(&file), home_on_bus(&file));
    three.run(["event", "create", "go"]).well();
    let refused = four.run(["event", "create", "go"]).failed();
    assert!(refused.stderr.contains("name a file of its own in ION_BUS"), "{refused:#?}");
}
