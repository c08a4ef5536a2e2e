package client_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/smolvmm/smolvmm/vmm/client"
)

// A machine of `smolvmm --api-sock /tmp/m.sock` is described, started and waited
// for.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := client.New("/tmp/m.sock")
	err := errors.Join(
		c.SetBootSource(ctx, client.BootSource{Kernel: "netbsd"}),
		c.SetDrive(ctx, client.Drive{ID: "root", Path: "root.img", Root: true}),
		c.SetMachineConfig(ctx, client.MachineConfig{CPUs: 1, MemoryMiB: 128}),
	)
	if err == nil {
		err = c.Start(ctx)
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	exit, err := c.Wait(ctx)
	fmt.Println(exit.Status, err)
}

// A machine that is not there is told from one that refuses.
func ExampleError() {
	_, err := client.New("/nonexistent/m.sock").Info(context.Background())
	var refused *client.Error
	switch {
	case errors.Is(err, client.ErrGone):
		fmt.Println("no such machine")
	case errors.As(err, &refused):
		fmt.Println("it said", refused.Message)
	}
	// Output: no such machine
}

// Events are read until the machine has ended.
func ExampleClient_Events() {
	for e, err := range client.New("/tmp/m.sock").Events(context.Background()) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(e.Time.Format(time.TimeOnly), e.Event, e.Text)
	}
}
