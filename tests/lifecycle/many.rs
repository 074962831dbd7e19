//! Many containers at once leave nothing behind.

use crate::common::leftovers::Watch;
use crate::place::{Place, alone};

#[test]
fn twenty_containers_at_once() {
    let _alone = alone();
    let watch = Watch::new();
    let place = Place::new("exit 3");
    let names: Vec<String> = (0..20).map(|number| format!("c{number}")).collect();
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| {
                place.run(&["create", name]);
                place.run(&["start", name]);
                assert_eq!(place.wait(name), 3);
                place.run(&["delete", name]);
            });
        }
    });
    place.is_empty();
    watch.nothing_is_left();
}
