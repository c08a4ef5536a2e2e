package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestMain lets the test binary be the program that is measured.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == childVerb {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// TestRun measures a small folder and gets a table with both programs.
func TestRun(t *testing.T) {
	if _, err := exec.LookPath("makefs"); err != nil {
		if _, err := os.Stat("/usr/sbin/makefs"); err != nil {
			t.Skip("NOT RUN: no makefs (Debian's package makefs)")
		}
	}
	var out, errs bytes.Buffer
	if status := run([]string{"-n", "2", "-files", "100", "-mb", "2", "-dir", t.TempDir(), "-no-command"}, &out, &errs); status != 0 {
		t.Fatalf("status %d: %s", status, errs.String())
	}
	for _, want := range []string{"| builder/image | ", "| makefs | ", "| ratio [95 %] | "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "peak memory is") {
		t.Errorf("%s", out.String())
	}
}

// TestRefused: bad flags and a missing makefs are errors with a status.
func TestRefused(t *testing.T) {
	for says, args := range map[string][]string{
		"flags above 0":               {"-n", "0"},
		"no arguments":                {"x"},
		"install Debian's package":    {"-makefs", "no-such-program"},
		"want a folder":               {childVerb},
		"flag provided but not":       {"-nonsense"},
		"folder /nowhere/at/all/here": {childVerb, "/nowhere/at/all/here", "x"},
	} {
		var out, errs bytes.Buffer
		if status := run(args, &out, &errs); status == 0 || !strings.Contains(errs.String(), says) {
			t.Errorf("%q: status %d, %q; want it to say %q", args, status, errs.String(), says)
		}
	}
}
