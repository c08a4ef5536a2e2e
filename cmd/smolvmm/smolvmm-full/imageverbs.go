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

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/images"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/machines"
)

// imageCommands are the verbs of the image store.
func imageCommands() []cli.Command {
	var out []cli.Command
	for _, v := range images.Verbs() {
		names := cli.ImageNames
		if v.Files {
			names = cli.FileNames
		}
		out = append(out, cli.Command{
			Name: v.Name, Group: cli.GroupImages, Summary: v.Summary, Help: v.Help, Names: names,
			Flags: func() *pflag.FlagSet {
				f, _ := v.New()
				f.BoolP("help", "h", false, "show the help")
				return f
			},
			Run: func(args []string, s cli.Streams) error { return imageVerb(v, args, s) },
		})
	}
	return out
}

// imageVerb runs one of them.
func imageVerb(v images.Verb, args []string, s cli.Streams) error {
	f, run := v.New()
	help := f.BoolP("help", "h", false, "show the help")
	flags, words, err := cli.SplitWords(f, args)
	if err != nil {
		return err
	}
	if _, err := cli.Parse(f, flags); err != nil {
		return err
	}
	if *help || len(words) == 1 && words[0] == "help" {
		fmt.Fprint(s.Out, v.Help)
		return nil
	}
	data, err := machines.DataFolder(s.Env)
	if err != nil {
		return cli.Usagef("%w", err)
	}
	config, err := configFolder(s.Env)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	_, stop := cli.WatchSignals(ctx, cancel, nil, s)
	defer stop()
	e := images.Env{
		In: s.In, Out: s.Out, Err: s.Err, Variable: s.Env, Size: cli.ParseSize,
		Store: filepath.Join(data, "images"), Keys: filepath.Join(config, "keys"),
		Machines: func(disk string) ([]string, error) { return machinesOn(disk, s) },
	}
	if cache, err := os.UserCacheDir(); err == nil { // without one nothing was built
		e.Cache = filepath.Join(cache, "smolvmm")
	}
	if out, ok := s.Out.(*os.File); ok {
		e.OutIsTerminal = cli.IsTerminal(out)
	}
	bars := map[string]*bar{}
	last := newBar(s.Err)
	e.Progress = func(what string, got, total int64) {
		if bars[what] == nil { // one line for each of disk, kernel and tree
			last.end()
			last = newBar(s.Err)
			bars[what] = last
		}
		bars[what].update(got, total)
	}
	err = run(ctx, e, words)
	last.end()
	var sig cli.SignalError
	var usage *images.UsageError
	switch {
	case err == nil:
		return nil
	case errors.As(context.Cause(ctx), &sig):
		return &cli.StatusError{Status: cli.StatusSignal + int(sig.Sig), Err: err}
	case errors.As(err, &usage):
		return &cli.UsageError{Err: err}
	}
	return &cli.StatusError{Status: cli.StatusFailed, Err: err}
}

// configFolder is where keys are: XDG Base Directory Specification 0.8.
func configFolder(env func(string) (string, bool)) (string, error) {
	base, _ := env("XDG_CONFIG_HOME")
	if !filepath.IsAbs(base) { // relative ones are to be ignored
		home, _ := env("HOME")
		if !filepath.IsAbs(home) {
			return "", cli.Usagef("there is no place for keys: set HOME or XDG_CONFIG_HOME to a folder")
		}
		base = filepath.Join(home, ".config")
	}
	return filepath.Join(base, "smolvmm"), nil
}

// machinesOn names the machines that have a file as a disk.
func machinesOn(disk string, s cli.Streams) ([]string, error) {
	st, err := machines.Open(s.Env)
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
