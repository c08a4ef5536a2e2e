package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/bench"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
)

// benchFlags are the flags of `smolvmm bench`.
func benchFlags() *pflag.FlagSet {
	f, _ := bench.New()
	f.BoolP("help", "h", false, "show the help")
	return f
}

// benchCommand is `smolvmm bench`.
func benchCommand(args []string, s cli.Streams) error {
	f, run := bench.New()
	help := f.BoolP("help", "h", false, "show the help")
	flags, words, err := cli.SplitWords(f, args)
	if err != nil {
		return err
	}
	if _, err := cli.Parse(f, flags); err != nil {
		return err
	}
	if *help || len(words) == 1 && words[0] == "help" {
		fmt.Fprint(s.Out, bench.Help)
		return nil
	}
	program, err := booter()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	_, stop := cli.WatchSignals(ctx, cancel, nil, s)
	defer stop()
	e := bench.Env{Out: s.Out, Err: s.Err, Program: program}
	if w, ok := s.Err.(*cli.LineWriter); ok {
		if file, ok := w.W.(*os.File); ok && cli.IsTerminal(file) {
			e.Progress = func(what string, done, total int) {
				end := "\r"
				if done == total {
					end = "\n"
				}
				fmt.Fprintf(file, "\r\x1b[K%s: %d of %d rounds%s", what, done, total, end)
			}
		}
	}
	err = run(ctx, e, words)
	var sig cli.SignalError
	var usage *bench.UsageError
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

// booter is the program that users boot with: smolvmm beside this one, or this one.
func booter() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return "", err
	}
	lean := filepath.Join(filepath.Dir(self), "smolvmm")
	if st, err := os.Stat(lean); err == nil && st.Mode().IsRegular() {
		return lean, nil
	}
	return self, nil
}
