package dialect

// Instruction is one of *Arg, *Env, *Label, *Shell, *Run, *Copy, *User, *Workdir,
// *Volume, *Expose, *StopSignal, *Cmd, *Entrypoint and *Healthcheck. Its words are
// as written: the Vars method of the same name expands them.
type Instruction interface {
	Position() Pos
	// Line is the instruction as written, continuation lines joined and without
	// the bodies of heredocs.
	Line() string
}

// Base is what every instruction has.
type Base struct {
	Pos  Pos
	Text string
	src  *source
	node span
}

// Position is where the instruction begins.
func (b *Base) Position() Pos { return b.Pos }

// Line is the instruction as written.
func (b *Base) Line() string { return b.Text }

// at is where a word of the instruction is.
func (b *Base) at(word string) Pos { return b.src.find(b.node, word) }

// Errorf makes an error about a word of the instruction; "" stands for all of it.
func (b *Base) Errorf(word, format string, args ...any) *Error {
	return errorf(b.at(word), format, args...)
}

// Pair is a name and a value.
type Pair struct{ Name, Value string }

// Arg declares a build argument. Default is nil where none is given.
type Arg struct {
	Base
	Name    string
	Default *string
	// Deferred says that Default has a command substitution, which only a shell
	// in the guest can do: see Run.Command.
	Deferred bool
}

// Env sets variables of the steps that follow and of the image.
type Env struct {
	Base
	Pairs []Pair
}

// Label sets labels of the image.
type Label struct {
	Base
	Pairs []Pair
}

// Shell sets what runs the shell forms that follow.
type Shell struct {
	Base
	Argv []string
}

// Heredoc is the text behind a <<NAME.
type Heredoc struct {
	Name    string
	Content string
	Expand  bool // the name was not quoted
}

// Mount is a --mount of a RUN.
type Mount struct {
	Type     string // "secret", "cache", "bind" or "tmpfs"
	ID       string // secret, cache
	Target   string
	Source   string // bind, cache
	From     string // bind, cache: a stage, an image; "" is the build context for bind
	Env      string // secret: the variable it becomes, or ""
	Mode     *uint16
	UID, GID *uint32
	Required bool // secret
	ReadOnly bool // cache; a bind is never written back
}

// Run runs a command in the image's root.
type Run struct {
	Base
	Argv     []string // the exec form, or nil
	Script   string   // the shell form: what is behind RUN on its line
	Heredocs []Heredoc
	Mounts   []Mount
	// Network is "default" or "none".
	Network string
}

// Copy is COPY or, with Add set, ADD.
type Copy struct {
	Base
	Add      bool
	Sources  []string // as written; a heredoc's is "<<NAME"
	Heredocs []Heredoc
	Dest     string
	From     string // COPY --from, or ""
	Chown    string
	Chmod    string
	Checksum string // ADD --checksum
	Exclude  []string
	Unpack   *bool // ADD --unpack
}

// User sets who runs the steps that follow and the image's command.
type User struct {
	Base
	Name string
}

// Workdir sets, and makes, the working directory.
type Workdir struct {
	Base
	Path string
}

// Volume names folders that are to have disks or shares of their own.
type Volume struct {
	Base
	Paths []string
}

// Expose names ports. Each is "80", "80/udp", "8000-8010", or smolBSD's
// "8080:80", which also publishes it.
type Expose struct {
	Base
	Ports []string
}

// StopSignal names the signal that asks the command to end.
type StopSignal struct {
	Base
	Signal string
}

// Command is what CMD, ENTRYPOINT and HEALTHCHECK hold: the exec form, or one
// string for a shell.
type Command struct {
	Argv  []string
	Shell bool
}

// Args gives the words to execute, shell being what SHELL says.
func (c Command) Args(shell []string) []string {
	if !c.Shell {
		return append([]string{}, c.Argv...)
	}
	return append(append([]string{}, shell...), c.Argv...)
}

// Cmd is CMD.
type Cmd struct {
	Base
	Command
}

// Entrypoint is ENTRYPOINT.
type Entrypoint struct {
	Base
	Command
}

// Healthcheck is HEALTHCHECK; the times are in nanoseconds, 0 where not given.
type Healthcheck struct {
	Base
	None                           bool
	Command                        Command
	Interval, Timeout, StartPeriod int64
	Retries                        int
}
