package cli

import (
	"bytes"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
)

func TestMain(m *testing.M) {
	if os.Args[0] == KeeperName {
		keeperMain()
		return
	}
	switch mode := os.Getenv(clitest.AsProgram); mode {
	case "":
		clitest.Main(m)
	case "leader":
		leaderMain()
	default:
		s := OwnStreams()
		if mode == "panic" {
			s.Started = panicOnSignal
		}
		os.Exit(Lean().Run(os.Args[1:], s))
	}
}

// panicOnSignal lets a goroutine of no one's panic at SIGUSR1.
func panicOnSignal() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	go func() {
		<-c
		panic("injected by a test")
	}()
}

// invoke runs the program in this process, for what starts no machine.
func invoke(t testing.TB, env map[string]string, args ...string) clitest.Result {
	t.Helper()
	var out, errs bytes.Buffer
	status := Lean().Run(args, Streams{
		Out: &out, Err: &errs, Raw: new(atomic.Bool), Started: func() {},
		Env:  func(k string) (string, bool) { v, ok := env[k]; return v, ok },
		Exit: func(status int) { t.Errorf("exit(%d)", status) },
	})
	return clitest.Result{Status: status, Out: out.String(), Err: errs.String()}
}
