// Command smolvmm-full is all of smolvmm in one program: the boot that smolvmm makes
// without it, and everything that needs more code than a boot should carry, from named
// machines over HTTP to builds and images. smolvmm becomes this program where it is
// asked for that.
package main

import (
	"os"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/bench"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/kernels/mirror"
)

func main() {
	if len(os.Args) > 0 && os.Args[0] == machineName {
		cli.GrowStack()
		os.Exit(machineMain(os.Args[1:]))
	}
	full().Main()
}

// full is the program.
func full() cli.Program { return cli.Program{Commands: commands, Serve: serve} }

// commands are all of them, in the order of the help.
func commands() []cli.Command {
	own := append(cli.OwnCommands(), []cli.Command{
		{Name: "run", Group: cli.GroupMachines, Summary: "run a machine with a name, here or in the background", Help: runHelp, Run: runCommand, Flags: func() *pflag.FlagSet { return new(runFlags).set() }, Names: cli.ImageNames},
		{Name: "ps", Group: cli.GroupMachines, Summary: "list machines", Help: psHelp, Run: psCommand, Flags: func() *pflag.FlagSet { return new(psFlags).set() }},
		{Name: "logs", Group: cli.GroupMachines, Summary: "show what a machine has printed", Help: logsHelp, Run: logsCommand, Flags: func() *pflag.FlagSet { return new(logsFlags).set() }, Names: cli.MachineNames},
		{Name: "exec", Group: cli.GroupMachines, Summary: "run a command in a machine", Help: execHelp, Run: execCommand, Flags: func() *pflag.FlagSet { return new(execFlags).set() }, Names: cli.MachineNames},
		{Name: "shell", Group: cli.GroupMachines, Summary: "start a shell in a machine", Help: shellHelp, Run: shellCommand, Flags: func() *pflag.FlagSet { return new(execFlags).shellSet() }, Names: cli.MachineNames},
		{Name: "cp", Group: cli.GroupMachines, Summary: "copy files to and from a machine", Help: cpHelp, Run: cpCommand, Flags: func() *pflag.FlagSet { return new(cpFlags).set() }, Names: cli.MachineNames},
		{Name: "stop", Group: cli.GroupMachines, Summary: "ask machines to shut down, then end them", Help: stopHelp, Run: stopCommand, Flags: func() *pflag.FlagSet { return new(stopFlags).set() }, Names: cli.MachineNames},
		{Name: "kill", Group: cli.GroupMachines, Summary: "end machines as if their power were cut", Help: killHelp, Run: killCommand, Flags: helpOnly("kill"), Names: cli.MachineNames},
		{Name: "wait", Group: cli.GroupMachines, Summary: "wait for machines to end", Help: waitHelp, Run: waitCommand, Flags: helpOnly("wait"), Names: cli.MachineNames},
		{Name: "rm", Group: cli.GroupMachines, Summary: "remove machines that have ended", Help: rmHelp, Run: rmCommand, Flags: func() *pflag.FlagSet { return new(rmFlags).set() }, Names: cli.MachineNames},
		{Name: "inspect", Group: cli.GroupMachines, Summary: "show all that is known of machines, as JSON", Help: inspectHelp, Run: inspectCommand, Flags: helpOnly("inspect"), Names: cli.MachineNames},
		{Name: "stats", Group: cli.GroupMachines, Summary: "show what machines use, live", Help: statsHelp, Run: statsCommand, Flags: func() *pflag.FlagSet { return new(statsFlags).set() }, Names: cli.MachineNames},
		{Name: "cleanup", Group: cli.GroupMachines, Summary: "remove what dead machines left behind", Help: cleanupHelp, Run: cleanupCommand, Flags: func() *pflag.FlagSet { return new(cleanupFlags).set() }},
		{Name: "build", Group: cli.GroupImages, Summary: "make a bootable image from a Dockerfile", Help: buildHelp, Run: buildCommand, Flags: func() *pflag.FlagSet { return new(buildFlags).set() }, Names: cli.FileNames},
		{Name: "kernel", Group: cli.GroupImages, Summary: "fetch and list NetBSD's own kernels", Help: kernelHelp, Run: kernelCommand, Flags: func() *pflag.FlagSet { return kernelFlags(new(mirror.Options), new(bool)) }},
		{Name: bench.Name, Group: cli.GroupOther, Summary: bench.Summary, Help: bench.Help, Run: benchCommand, Flags: benchFlags},
		{Name: "completion", Group: cli.GroupOther, Summary: "print a completion script: bash, zsh or fish", Help: completionHelp, Run: completion},
		{Name: "man", Group: cli.GroupOther, Summary: "print the manual page", Help: manHelp, Run: man},
	}...)
	return append(own, imageCommands()...)
}
