//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"

	"golang.org/x/sys/unix"
)

// serveAgent starts smolinit as a service, and goes on until somebody asks for a
// reboot: as the init of a distribution does, with what little that takes.
func serveAgent() error {
	if err := os.Mkdir("/dev/pts", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("devpts", "/dev/pts", "devpts", 0, "ptmxmode=0666"); err != nil {
		return fmt.Errorf("mount /dev/pts: %w", err)
	}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGTERM)
	service := exec.Command("/bin/smolinit")
	service.Env, service.Dir = []string{"PATH=/bin", "HOME=/"}, "/"
	service.Stdout, service.Stderr = os.Stdout, os.Stderr
	if err := service.Start(); err != nil {
		return err
	}
	gone := make(chan error, 1)
	go func() { gone <- service.Wait() }()
	select {
	case sig := <-asked:
		ok("asked to end by %v", sig)
		return nil
	case err := <-gone:
		return errors.Join(errors.New("smolinit has ended"), err)
	}
}

// askInit is what a guest's command reboot does: it tells the init.
func askInit() {
	if err := unix.Kill(1, unix.SIGTERM); err != nil {
		fmt.Fprintln(os.Stderr, "reboot:", err)
		os.Exit(1)
	}
}
