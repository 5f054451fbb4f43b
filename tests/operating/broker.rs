//! What is refused by a broker, or was done to Ion's queues on it.

use std::path::PathBuf;

use crate::home_on_bus;
use crate::support::Home;
use crate::support::servers::Rabbit;

fn pipeline(home: &Home) -> PathBuf {
    home.program("work", "#!/bin/sh\n:\n");
    home.write("pipeline.yaml", "modules:\n  work: {on: [go], run: [./work]}\n")
}

#[test]
fn a_missing_right_is_named_with_what_grants_it() {
    let rabbit = Rabbit::start();
    let own = r"^ion\.";
    let cases = [
        ("nothing", ["", own, own], "configure exchange \"ion.events\""),
        ("unwriting", [own, "", own], "write exchange \"ion.dead\""),
        ("unreading", [own, ".*", ""], "read queue \"ion.dead\""),
        ("unsending", [own, own, own], "write exchange \"amq.default\""),
        ("elsewhere", [r"^ion\.(events|dead)", ".*", ".*"], "configure or read queue \"ion.module."),
    ];
    for (user, rights, missing) in cases {
        let home = home_on_bus(&rabbit.user(user, rights));
        let file = pipeline(&home);
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
