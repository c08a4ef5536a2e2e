package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/images"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/machines"
)

// imageCommands are the verbs of the image store.
func imageCommands() []command {
	var out []command
	for _, v := range images.Verbs() {
		names := imageNames
		if v.Files {
			names = fileNames
		}
		out = append(out, command{
			name: v.Name, group: groupImages, summary: v.Summary, help: v.Help, names: names,
			flags: func() *pflag.FlagSet {
				f, _ := v.New()
				f.BoolP("help", "h", false, "show the help")
				return f
			},
			run: func(args []string, s streams) error { return imageVerb(v, args, s) },
		})
	}
	return out
}

// imageVerb runs one of them.
func imageVerb(v images.Verb, args []string, s streams) error {
	f, run := v.New()
	help := f.BoolP("help", "h", false, "show the help")
	flags, words, err := splitWords(f, args)
	if err != nil {
		return err
	}
	if _, err := parse(f, flags); err != nil {
		return err
	}
	if *help || len(words) == 1 && words[0] == "help" {
		fmt.Fprint(s.out, v.Help)
		return nil
	}
	data, err := machines.DataFolder(s.env)
	if err != nil {
		return usagef("%w", err)
	}
	config, err := configFolder(s.env)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	_, stop := watchSignals(ctx, cancel, nil, s)
	defer stop()
	e := images.Env{
		In: s.in, Out: s.out, Err: s.err, Variable: s.env, Size: parseSize,
		Store: filepath.Join(data, "images"), Keys: filepath.Join(config, "keys"),
		Machines: func(disk string) ([]string, error) { return machinesOn(disk, s) },
	}
	if cache, err := os.UserCacheDir(); err == nil { // without one nothing was built
		e.Cache = filepath.Join(cache, "smolvmm")
	}
	if out, ok := s.out.(*os.File); ok {
		e.OutIsTerminal = isTerminal(out)
	}
	bars := map[string]*bar{}
	last := newBar(s.err)
	e.Progress = func(what string, got, total int64) {
		if bars[what] == nil { // one line for each of disk, kernel and tree
			last.end()
			last = newBar(s.err)
			bars[what] = last
		}
		bars[what].update(got, total)
	}
	err = run(ctx, e, words)
	last.end()
	var sig signalError
	var usage *images.UsageError
	switch {
	case err == nil:
		return nil
	case errors.As(context.Cause(ctx), &sig):
		return &statusError{status: statusSignal + int(sig.sig), err: err}
	case errors.As(err, &usage):
		return &usageError{err}
	}
	return &statusError{status: statusFailed, err: err}
}

// configFolder is where keys are: XDG Base Directory Specification 0.8.
func configFolder(env func(string) (string, bool)) (string, error) {
	base, _ := env("XDG_CONFIG_HOME")
	if !filepath.IsAbs(base) { // relative ones are to be ignored
		home, _ := env("HOME")
		if !filepath.IsAbs(home) {
			return "", usagef("there is no place for keys: set HOME or XDG_CONFIG_HOME to a folder")
		}
		base = filepath.Join(home, ".config")
	}
	return filepath.Join(base, "smolvmm"), nil
}

// machinesOn names the machines that have a file as a disk.
func machinesOn(disk string, s streams) ([]string, error) {
	st, err := machines.Open(s.env)
	if err != nil {
		return nil, err
	}
	all, err := st.List()
	if err != nil {
		return nil, err
	}
	disk = strings.ReplaceAll(disk, ",", ",,") // as -disk has it
	var names []string
	for _, m := range all {
		if slices.ContainsFunc(m.Spec.Disks, func(d string) bool { return d == disk || strings.HasPrefix(d, disk+",") }) {
			names = append(names, m.Spec.Name)
		}
	}
	return names, nil
}
