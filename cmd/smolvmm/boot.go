package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/api"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/kernels"
	"github.com/smolvmm/smolvmm/vmm"
)

// boot is `smolvmm -kernel …`.
func boot(args []string, s streams) error {
	var b bootFlags
	f := b.set()
	argv, err := parse(f, args)
	switch {
	case err != nil:
		return err
	case b.help:
		fmt.Fprint(s.out, bootHelp)
		return nil
	case b.version:
		return version(nil, s)
	}
	if err := b.api.check(); err != nil {
		return err
	}
	if b.api.socket != "" && b.kernel == "" {
		return b.serveFirst(argv, s, f.Changed)
	}
	cfg, err := b.config(argv, s)
	if err != nil {
		return err
	}
	o := b.options()
	if b.api.socket != "" || b.api.metrics != "" {
		if err := b.serveBoot(&cfg, &o, s); err != nil {
			wipe(cfg.Items)
			return err
		}
	}
	return runMachine(cfg, o, s)
}

// options are what a run takes from the flags besides the configuration.
func (b *bootFlags) options() runOptions {
	return runOptions{console: b.console, timeout: b.timeout, registers: b.verbose || b.trace, verbose: b.verbose, plan: b.plan}
}

// config turns flags into a machine's configuration. Nothing has been made on
// the host when it fails; its items are the caller's to wipe.
// The network's plan is kept for options.
func (b *bootFlags) config(argv []string, s streams) (vmm.Config, error) {
	cfg := vmm.Config{Cmdline: b.append, CPUs: b.cpus, CPU: b.cpu, HugePages: b.hugepages}
	var err error
	if cfg.Memory, err = parseSize(b.memory); err != nil {
		return cfg, err
	}
	if b.cpus < 1 || b.cpus > vmm.MaxCPUs {
		return cfg, usagef("-cpus %d: must be between 1 and %d", b.cpus, vmm.MaxCPUs)
	}
	if b.plan, err = b.net.Plan(); err != nil {
		return cfg, usagef("%w", err)
	}
	if err := checkConsole(b.console); err != nil {
		return cfg, err
	}
	if cfg.Vsock, err = parseVsock(b.vsock); err != nil {
		return cfg, err
	}
	if cfg.Confine, err = confinement(b.confine, b.console); err != nil {
		return cfg, err
	}
	for _, d := range b.disks {
		o, err := parseDisk(d)
		if err != nil {
			return cfg, err
		}
		cfg.Disks = append(cfg.Disks, o)
	}
	if b.kernel == "" {
		if b.kernel, err = newestKernel(); err != nil {
			return cfg, err
		}
	}
	cfg.Kernel.Path = b.kernel
	if err := readable("-kernel", b.kernel); err != nil {
		return cfg, err
	}
	for _, p := range b.initrds {
		if err := readable("-initrd", p); err != nil {
			return cfg, err
		}
		cfg.Initrds = append(cfg.Initrds, vmm.File{Path: p})
	}
	if cfg.Log, err = b.logger(s); err != nil {
		return cfg, err
	}
	if b.trace {
		cfg.Trace = s.err
	}
	if cfg.Items, err = b.items(argv, len(cfg.Disks) > 0 && cfg.Disks[0].ReadOnly, s.env); err != nil {
		return cfg, err
	}
	b.hideSecrets(cfg.Log)
	return cfg, nil
}

// logger is where the monitor says what it has to say.
func (b *bootFlags) logger(s streams) (*slog.Logger, error) {
	if b.log != nil {
		return b.log, nil
	}
	if b.api.logFormat == api.JSON {
		l, err := api.NewLog(s.err, api.JSON, levelOf(b.verbose), true)
		if err != nil {
			return nil, usagef("-log-format %w", err)
		}
		return l.Logger(), nil
	}
	return slog.New(slog.NewTextHandler(s.err, &slog.HandlerOptions{Level: levelOf(b.verbose), ReplaceAttr: withoutTime})), nil
}

func levelOf(verbose bool) slog.Level {
	if verbose {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

// newestKernel finds a kernel where none is named.
func newestKernel() (string, error) {
	k, err := kernels.Find("", "")
	if err != nil {
		return "", usagef("%w", err)
	}
	return k.Path, nil
}

// readable refuses a file that cannot be one to load, in words that name the
// flag; the loader has the last word on it. The demo guest has no file.
func readable(flag, path string) error {
	if path == builtIn {
		return nil
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return usagef("%s %s: no such file", flag, path)
	case err != nil:
		return usagef("%s %s: %w", flag, path, plain(err))
	case !st.Mode().IsRegular():
		return usagef("%s %s: not a regular file", flag, path)
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
