//! The entry point: parses the arguments, runs the command and turns its result into an exit status.

use std::process::ExitCode;

use callsign::{cli, exit};

/// Parsing a large cluster allocates much and frees most of it. With this allocator, a quarter less remains resident than
/// with glibc's; docs/scale.md has the figures. Its third version retains more than either.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = std::env::args_os().map(std::ffi::OsString::into_string).collect::<Result<Vec<_>, _>>();
    let arguments = match arguments {
        Ok(arguments) => arguments,
        Err(argument) => {
            eprintln!("callsign: invalid argument '{}': not UTF-8", argument.display());
            return ExitCode::from(exit::USAGE);
        }
    };
    let cli = match cli::parse(arguments) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                eprintln!("callsign: no command given; `callsign --help` lists the commands");
                return ExitCode::from(exit::USAGE);
            }
            eprintln!("{}", cli::message_of(error));
            return ExitCode::from(exit::USAGE);
        }
        Err(help) => {
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.line.is_empty() {
                eprintln!("callsign: {}", failure.line);
            }
            ExitCode::from(failure.status)
        }
    }
}
