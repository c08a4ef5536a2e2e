package cli

import "github.com/spf13/pflag"

// The groups of commands, in the order of the help.
const (
	GroupMachines = "Machines"
	GroupImages   = "Images"
	GroupOther    = "Other"
)

// Groups are all groups.
func Groups() []string { return []string{GroupMachines, GroupImages, GroupOther} }

// NameKind is what the words behind a command are.
type NameKind string

const (
	NoNames      NameKind = ""
	MachineNames NameKind = "machines"
	ImageNames   NameKind = "images"
	FileNames    NameKind = "files"
)

// Command is a subcommand; booting a machine is what happens without one.
type Command struct {
	Name    string
	Group   string // where `help commands` has it: one of the groups
	Summary string // a few words
	Help    string // the whole help text
	// Flags makes its flags, for completion and the man page; nil: it has none.
	Flags func() *pflag.FlagSet
	// Names says what its words are, for completion: nothing, files, machines or images.
	Names NameKind
	Run   func(args []string, s Streams) error
}

// OwnCommands are those of smolvmm itself.
func OwnCommands() []Command {
	return []Command{
		{Name: "demo", Group: GroupOther, Summary: "boot the built-in test guest", Help: demoHelp, Run: demoRun, Flags: func() *pflag.FlagSet { return demoFlags(new(BootFlags), new(bool)) }},
		{Name: "doctor", Group: GroupOther, Summary: "say whether machines can run here", Help: doctorHelp, Run: doctor},
		{Name: "version", Group: GroupOther, Summary: "print the version", Help: versionHelp, Run: version},
	}
}

// Entry is a command as the help shows it, whichever program has it.
type Entry struct{ Name, Group, Summary string }

// Verbs are all commands, in the order of the help.
func Verbs() []Entry {
	return []Entry{
		{"demo", GroupOther, "boot the built-in test guest"},
		{"doctor", GroupOther, "say whether machines can run here"},
		{"version", GroupOther, "print the version"},
		{"run", GroupMachines, "run a machine with a name, here or in the background"},
		{"ps", GroupMachines, "list machines"},
		{"logs", GroupMachines, "show what a machine has printed"},
		{"exec", GroupMachines, "run a command in a machine"},
		{"shell", GroupMachines, "start a shell in a machine"},
		{"cp", GroupMachines, "copy files to and from a machine"},
		{"stop", GroupMachines, "ask machines to shut down, then end them"},
		{"kill", GroupMachines, "end machines as if their power were cut"},
		{"wait", GroupMachines, "wait for machines to end"},
		{"rm", GroupMachines, "remove machines that have ended"},
		{"inspect", GroupMachines, "show all that is known of machines, as JSON"},
		{"stats", GroupMachines, "show what machines use, live"},
		{"cleanup", GroupMachines, "remove what dead machines left behind"},
		{"build", GroupImages, "make a bootable image from a Dockerfile"},
		{"kernel", GroupImages, "fetch and list NetBSD's own kernels"},
		{"bench", GroupOther, "measure smolvmm beside other monitors, here"},
		{"completion", GroupOther, "print a completion script: bash, zsh or fish"},
		{"man", GroupOther, "print the manual page"},
		{"images", GroupImages, "list images"},
		{"pull", GroupImages, "fetch an image from a registry"},
		{"push", GroupImages, "put an image into a registry"},
		{"tag", GroupImages, "give an image one more name"},
		{"rmi", GroupImages, "remove images"},
		{"image", GroupImages, "inspect and check images"},
		{"save", GroupImages, "write images into an archive"},
		{"load", GroupImages, "take images out of an archive"},
		{"prune", GroupImages, "remove images without a name and what nobody needs"},
		{"key", GroupImages, "make and list keys for signatures"},
		{"sign", GroupImages, "sign an image"},
		{"verify", GroupImages, "tell who has signed an image"},
	}
}
