//go:build linux || netbsd

// Command agentcheck is what a test has the agent of a guest run: it shows what
// a command sees of its streams, terminal, environment and signals.
//
//	agentcheck wait           wait for SIGTERM, say so, exit 0
//	agentcheck cat            standard input to standard output
//	agentcheck env NAME…      print variables, directory, user
//	agentcheck exit N [TEXT]  TEXT on standard error, exit with N
//	agentcheck tty            print the terminal's size, and again when it changes, until a line "quit"
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "agentcheck: what?")
		return 2
	}
	switch args[0] {
	case "wait":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGHUP)
		fmt.Println("agentcheck: waiting")
		fmt.Println("agentcheck: got", <-c)
	case "cat":
		if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, "agentcheck:", err)
			return 1
		}
	case "env":
		for _, name := range args[1:] {
			fmt.Printf("%s=%s\n", name, os.Getenv(name))
		}
		dir, _ := os.Getwd()
		fmt.Printf("dir=%s uid=%d gid=%d\n", dir, os.Getuid(), os.Getgid())
	case "exit":
		if len(args) > 2 {
			fmt.Fprintln(os.Stderr, args[2])
		}
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return 2
		}
		return n
	case "tty":
		return tty()
	default:
		fmt.Fprintln(os.Stderr, "agentcheck: no", args[0])
		return 2
	}
	return 0
}

// tty shows what terminal the command has.
func tty() int {
	size := func() {
		w, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		if err != nil {
			fmt.Println("no terminal:", err)
			return
		}
		fmt.Println("size", w.Row, w.Col)
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGWINCH)
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(os.Stdin); s.Scan(); {
			lines <- s.Text()
		}
	}()
	size()
	for {
		select {
		case <-c:
			size()
		case l, ok := <-lines:
			if !ok || l == "quit" {
				fmt.Println("bye")
				return 0
			}
		}
	}
}
