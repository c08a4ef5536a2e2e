package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/bench"
)

// benchFlags are the flags of `smolvmm bench`.
func benchFlags() *pflag.FlagSet {
	f, _ := bench.New()
	f.BoolP("help", "h", false, "show the help")
	return f
}

// benchCommand is `smolvmm bench`.
func benchCommand(args []string, s streams) error {
	f, run := bench.New()
	help := f.BoolP("help", "h", false, "show the help")
	flags, words, err := splitWords(f, args)
	if err != nil {
		return err
	}
	if _, err := parse(f, flags); err != nil {
		return err
	}
	if *help || len(words) == 1 && words[0] == "help" {
		fmt.Fprint(s.out, bench.Help)
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	_, stop := watchSignals(ctx, cancel, nil, s)
	defer stop()
	e := bench.Env{Out: s.out, Err: s.err, Program: self}
	if w, ok := s.err.(*lineWriter); ok {
		if file, ok := w.w.(*os.File); ok && isTerminal(file) {
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
	var sig signalError
	var usage *bench.UsageError
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
