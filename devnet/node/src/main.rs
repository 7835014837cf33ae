// SPDX-License-Identifier: Apache-2.0
//! A small Substrate node for DCUpgrade's development chain.

mod rpc;
mod runtime_api;
mod service;
mod spec;

use clap::Parser;
use sc_cli::{RunCmd, SubstrateCli};

/// The command line: a full node's usual options, and the commands that make keys and chain specs.
#[derive(Debug, Parser)]
struct Cli {
	#[command(subcommand)]
	subcommand: Option<Subcommand>,

	/// End when standard input closes, so that the node does not outlive who started it.
	#[arg(long)]
	exit_with_stdin: bool,

	#[clap(flatten)]
	run: RunCmd,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
	/// Key management utilities.
	#[command(subcommand)]
	Key(sc_cli::KeySubcommand),
	/// Print a chain spec.
	BuildSpec(sc_cli::BuildSpecCmd),
}

impl SubstrateCli for Cli {
	fn impl_name() -> String {
		"DCUpgrade devnet node".into()
	}

	fn impl_version() -> String {
		env!("CARGO_PKG_VERSION").into()
	}

	fn description() -> String {
		env!("CARGO_PKG_DESCRIPTION").into()
	}

	fn author() -> String {
		"DCUpgrade".into()
	}

	fn support_url() -> String {
		"see README.md".into()
	}

	fn copyright_start_year() -> i32 {
		2026
	}

	fn load_spec(&self, id: &str) -> Result<Box<dyn sc_service::ChainSpec>, String> {
		Ok(Box::new(spec::load(id)?))
	}
}

/// Ends this process as SIGTERM does when standard input closes.
fn exit_with_stdin() {
	std::thread::spawn(|| {
		let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
		// SAFETY: a signal to this very process, whose handler is the one of the service's runner.
		unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
	});
}

fn main() -> sc_cli::Result<()> {
	let cli = Cli::from_args();
	match &cli.subcommand {
		Some(Subcommand::Key(command)) => command.run(&cli),
		Some(Subcommand::BuildSpec(command)) => {
			let runner = cli.create_runner(command)?;
			runner.sync_run(|config| command.run(config.chain_spec, config.network))
		},
		None => {
			let runner = cli.create_runner(&cli.run)?;
			if cli.exit_with_stdin {
				exit_with_stdin();
			}
			runner.run_node_until_exit(|config| async move { service::start(config).map_err(sc_cli::Error::Service) })
		},
	}
}
