package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm/agent"
	"github.com/smolvmm/smolvmm/vmm/agent/agentd"
)

// keyFile is where Linux's qemu_fw_cfg shows the agent's key.
const keyFile = "/sys/firmware/qemu_fw_cfg/by_name/" + agent.Item + "/raw"

// In a Linux guest smolinit is no init: it is started by the guest's own and serves
// the agent, over virtio-vsock and TCP.
func main() {
	if len(os.Args) > 1 || os.Getpid() == 1 {
		fmt.Fprintln(os.Stderr, "smolinit: in a Linux guest it is a service that serves smolvmm's agent: have the guest's own init start it, as root and without arguments")
		os.Exit(2)
	}
	if err := serveLinux(); err != nil {
		fmt.Fprintf(os.Stderr, "smolinit: %v\n", err)
		os.Exit(1)
	}
}

// serveLinux serves for ever on what the guest has.
func serveLinux() error {
	key, err := os.ReadFile(keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: the machine has no agent's key (smolvmm run and --api-sock give one), or the kernel does not show it: it needs the module qemu_fw_cfg, and smolvmm's -acpi", err)
	} else if err != nil {
		return err
	}
	k, err := agent.ParseKey(strings.TrimSpace(string(key)))
	clear(key)
	if err != nil {
		return err
	}
	var up unix.Sysinfo_t
	if err := unix.Sysinfo(&up); err != nil {
		return err
	}
	cwd, err := os.Getwd()
	if err != nil {
		cwd = "/"
	}
	server := &agentd.Server{
		Key: k, System: linux{booted: time.Now().Add(-time.Duration(up.Uptime) * time.Second)}, Env: os.Environ(), Cwd: cwd,
		Logf: func(format string, args ...any) { fmt.Fprintf(os.Stderr, "smolinit: agent: "+format+"\n", args...) },
	}
	ways := 0
	over := make(chan error)
	for _, listen := range []func() (net.Listener, error){
		func() (net.Listener, error) { return agentd.ListenVsock(agent.Port) },
		func() (net.Listener, error) { return net.Listen("tcp", fmt.Sprintf(":%d", agent.Port)) },
	} {
		l, err := listen()
		if err != nil {
			// A guest may have one of them only.
			fmt.Fprintf(os.Stderr, "smolinit: %v\n", err)
			continue
		}
		ways++
		go func() { over <- server.Serve(l) }()
	}
	if ways == 0 {
		return errors.New("neither virtio-vsock nor TCP: nobody can be talked to")
	}
	return <-over // a listener that fails: its service begins again
}

// linux is what the agent's server needs of a guest with an init of its own.
type linux struct {
	agentd.Processes
	booted time.Time
}

func (l linux) Info() agent.Started { return agentd.Info(l.booted) }

// Shutdown has the guest's init end everything; a reset is how a machine of smolvmm's
// ends itself, as there is no power to switch off. A guest without the command has
// nothing to be ended but the kernel.
func (linux) Shutdown() {
	go func() {
		out, err := exec.Command("reboot").CombinedOutput()
		if err == nil {
			return
		}
		fmt.Fprintf(os.Stderr, "smolinit: reboot: %v %s\n", err, strings.TrimSpace(string(out)))
		unix.Sync()
		_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	}()
}
