package main

import (
	"bytes"
	"os"
	"sync/atomic"
	"testing"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
)

func TestMain(m *testing.M) {
	switch {
	case os.Args[0] == machineName:
		os.Exit(machineMain(os.Args[1:]))
	case os.Args[0] == cli.KeeperName, os.Getenv(clitest.AsProgram) != "":
		full().Main()
	default:
		clitest.Main(m)
	}
}

// invoke runs the program in this process, for what starts no machine.
func invoke(t testing.TB, env map[string]string, args ...string) clitest.Result {
	t.Helper()
	var out, errs bytes.Buffer
	status := full().Run(args, cli.Streams{
		Out: &out, Err: &errs, Raw: new(atomic.Bool), Started: func() {},
		Env:  func(k string) (string, bool) { v, ok := env[k]; return v, ok },
		Exit: func(status int) { t.Errorf("exit(%d)", status) },
	})
	return clitest.Result{Status: status, Out: out.String(), Err: errs.String()}
}
