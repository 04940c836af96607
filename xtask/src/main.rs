//! Everything about rawr that is more than one cargo command.

use std::process::ExitCode;

use clap::Parser;

mod bench;
mod command;
mod demo;
mod matrix;
mod setup;
mod test;
mod tidy;
mod toolchain;
mod vm;

#[derive(Parser)]
#[command(name = "cargo xtask", about)]
enum Task {
    /// Install what is missing, build, run every check and test.
    Test(test::Arguments),
    /// Install what is missing, build, run the main job in network namespaces, tell what happened.
    Demo,
    /// Install what building and testing need and this machine lacks.
    Setup,
    /// Measure.
    Bench(bench::Arguments),
    /// Measure who connects to whom through which NATs.
    Matrix(matrix::Arguments),
    /// Run what the kernel has a part in on Debian's kernel, in an emulator.
    Vm(vm::Arguments),
    /// Check what the architecture forbids.
    Tidy,
}

fn main() -> ExitCode {
    let result = match Task::parse() {
        Task::Test(arguments) => test::start(&arguments),
        Task::Demo => demo::start(),
        Task::Setup => setup::run(),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Matrix(arguments) => matrix::start(&arguments),
        Task::Vm(arguments) => vm::start(&arguments),
        Task::Tidy => tidy::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
