package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/kernels"
	"github.com/smolvmm/smolvmm/vmm"
)

// boot is `smolvmm -kernel …`.
func (p Program) boot(args []string, s Streams) error {
	var b BootFlags
	f := b.Set()
	argv, err := Parse(f, args)
	switch {
	case err != nil:
		return err
	case b.Help:
		fmt.Fprint(s.Out, bootHelp)
		return nil
	case b.version:
		return version(nil, s)
	}
	if b.API.asked() {
		if p.Serve == nil {
			return handOver("an API, metrics or a log as JSON", args)
		}
		return p.Serve(&b, argv, s, f.Changed)
	}
	cfg, err := b.Config(argv, s)
	if err != nil {
		return err
	}
	return RunMachine(cfg, b.Options(), s)
}

// Options are what a run takes from the flags besides the configuration.
func (b *BootFlags) Options() runOptions {
	return runOptions{console: b.Console, timeout: b.timeout, registers: b.Verbose || b.trace, verbose: b.Verbose, plan: b.Plan}
}

// Config turns flags into a machine's configuration. Nothing has been made on
// the host when it fails; its items are the caller's to wipe.
// The network's plan is kept for options.
func (b *BootFlags) Config(argv []string, s Streams) (vmm.Config, error) {
	cfg := vmm.Config{Cmdline: b.Append, CPUs: b.CPUs, CPU: b.cpu, Pages: b.Pages, ACPI: b.ACPI}
	var err error
	if cfg.Memory, err = ParseSize(b.Memory); err != nil {
		return cfg, err
	}
	if b.CPUs < 1 || b.CPUs > vmm.MaxCPUs {
		return cfg, Usagef("-cpus %d: must be between 1 and %d", b.CPUs, vmm.MaxCPUs)
	}
	if b.Plan, err = b.Net.Plan(); err != nil {
		return cfg, Usagef("%w", err)
	}
	if err := CheckConsole(b.Console); err != nil {
		return cfg, err
	}
	if cfg.Vsock, err = parseVsock(b.vsock); err != nil {
		return cfg, err
	}
	if cfg.Confine, err = Confinement(b.Confine, b.Console); err != nil {
		return cfg, err
	}
	for _, d := range b.Disks {
		o, err := parseDisk(d)
		if err != nil {
			return cfg, err
		}
		cfg.Disks = append(cfg.Disks, o)
	}
	if b.Kernel == "" {
		if b.Kernel, err = newestKernel(); err != nil {
			return cfg, err
		}
	}
	cfg.Kernel.Path = b.Kernel
	if err := Readable("-kernel", b.Kernel); err != nil {
		return cfg, err
	}
	for _, p := range b.Initrds {
		if err := Readable("-initrd", p); err != nil {
			return cfg, err
		}
		cfg.Initrds = append(cfg.Initrds, vmm.File{Path: p})
	}
	cfg.Log = b.logger(s)
	if b.trace {
		cfg.Trace = s.Err
	}
	if cfg.Items, err = b.items(argv, len(cfg.Disks) > 0 && cfg.Disks[0].ReadOnly, s.Env); err != nil {
		return cfg, err
	}
	b.hideSecrets(cfg.Log)
	return cfg, nil
}

// logger is where the monitor says what it has to say.
func (b *BootFlags) logger(s Streams) *slog.Logger {
	if b.Log != nil {
		return b.Log
	}
	return slog.New(slog.NewTextHandler(s.Err, &slog.HandlerOptions{Level: LevelOf(b.Verbose), ReplaceAttr: withoutTime}))
}

func LevelOf(verbose bool) slog.Level {
	if verbose {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

// newestKernel finds a kernel where none is named.
func newestKernel() (string, error) {
	k, err := kernels.Find("", "")
	if err != nil {
		return "", Usagef("%w", err)
	}
	return k.Path, nil
}

// Readable refuses a file that cannot be one to load, in words that name the
// flag; the loader has the last word on it. The demo guest has no file.
func Readable(flag, path string) error {
	if path == builtIn {
		return nil
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return Usagef("%s %s: no such file", flag, path)
	case err != nil:
		return Usagef("%s %s: %w", flag, path, Plain(err))
	case !st.Mode().IsRegular():
		return Usagef("%s %s: not a regular file", flag, path)
	}
	return nil
}

// withoutTime leaves the time out of log lines: they go to a person who is
// looking, and the local time zone could not be read in a confined process.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}
