//! What is promised, one file a theme.

mod absences;
mod below_minimum;
mod certificates;
mod chaos;
mod copies;
mod diskless;
mod ends;
mod full_disks;
mod links;
mod members;
mod readiness;
mod resync;
mod still_disks;
mod verify;
mod watching;
