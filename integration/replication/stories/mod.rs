//! What is promised, one file a theme.

mod absences;
mod below_minimum;
mod certificates;
mod chaos;
mod copies;
mod ends;
mod links;
mod resync;
mod verify;
