// Package builder makes bootable images for NetBSD guests from Dockerfiles.
//
// Build evaluates the stages that the target needs, each step cached under a
// digest of all that it depends on, and turns the last tree into a disk image.
// What a build takes from outside is injected: NetBSD's sets, images, u-root's
// commands, the machine that executes RUN.
package builder

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/image"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// DefaultRelease is NetBSD's, where neither a build argument NETBSD_RELEASE nor
// an ARG of that name before the first FROM says another.
const DefaultRelease = "11.0"

// Options are what a build is made of. Context, Blobs and Cache are needed, the
// rest where the Dockerfile asks for it.
type Options struct {
	Dockerfile string            // its name for errors
	Text       []byte            // its content
	Context    string            // the folder that COPY, ADD and INCLUDE see; "" is none
	Ignore     []byte            // .dockerignore's content, nil for none
	Args       map[string]string // --build-arg
	Target     string            // stage name or number; "" is the last
	NoCache    bool              // every step is done again

	Blobs *blob.Store // contents of files, and encoded trees
	Cache string      // the folder of the step cache

	Sets     Sets
	Packages Packages
	Images   Images
	Toolbox  Toolbox
	Runner   Runner

	// Roots are more roots by name, for FROM and COPY --from.
	Roots map[string]*tree.Tree

	Secrets map[string][]byte // --secret, by id
	Timeout time.Duration     // of one RUN; 0 is none

	// HTTP fetches what ADD names by URL; nil refuses URLs.
	HTTP *http.Client
	// AllowUnchecked lets ADD fetch URLs without --checksum: what is there now
	// becomes part of the image, and the cache keeps it until --no-cache.
	AllowUnchecked bool

	// Epoch is SOURCE_DATE_EPOCH: no time in the image is later. Zero: files keep
	// the times of their sources, what the build makes has none (1970), and the
	// image does not say when it was created.
	Epoch time.Time

	Size int64 // of the image file in bytes, over smolbsd.imgsize; 0 is by content

	// Progress is told what happens, one event after the other; nil is nobody.
	Progress func(Event)
}

// Sets gives NetBSD's distribution sets. Several stages may ask at once, as they may
// ask everything else that is injected.
type Sets interface {
	// Fetch gives the named sets of a release, in their order.
	Fetch(ctx context.Context, release string, names []string) ([]Layer, error)
}

// Packages gives pkgsrc's binary packages, which LABEL smolbsd.addpkgs names.
type Packages interface {
	// Fetch gives the named packages as trees of the root, without what begins
	// with a plus sign.
	Fetch(ctx context.Context, release string, names []string) ([]Layer, error)
}

// Layer is a tree that is known by a digest before it is there.
type Layer struct {
	Name   string
	Digest string // "sha256:…" of what it was made of: the same digest, the same tree
	// Open gives the tree. What it is made of may be kept; with whole set, the
	// layer makes sure first that all of that is still there.
	Open func(ctx context.Context, whole bool) (*tree.Tree, error)
}

// Images are those that FROM and COPY --from name, and where the result goes.
type Images interface {
	// Resolve finds an image; errors are fs.ErrNotExist where there is none.
	Resolve(ctx context.Context, ref string) (spec.Image, error)
	// Tree gives the root of an image. The caller may not change it.
	Tree(ctx context.Context, img spec.Image) (*tree.Tree, error)
	// HasDisk says whether the disk of that digest is there, so that it need not
	// be made again.
	HasDisk(digest string) bool
	// Temp gives a new file for a disk, which is the caller's to remove.
	Temp() (path string, err error)
	// Put files the image under its names and gives its description. disk is a
	// file of Temp's, which it may take away, or "" where HasDisk(img.Disk.Digest); all contents of the tree are
	// in the build's blob store.
	Put(ctx context.Context, refs []string, img spec.Image, disk string, root func() (*tree.Tree, error)) (spec.Image, error)
}

// Toolbox gives what images are made of beside NetBSD's sets.
type Toolbox interface {
	// Init is smolinit, for netbsd/amd64.
	Init(ctx context.Context) (tree.Content, error)
	// Devices puts the nodes of /dev into a root that has a folder dev.
	Devices(root *tree.Tree) error
	// Scratch is the root that FROM scratch begins with.
	Scratch() (*tree.Tree, error)
	// URoot is a root with u-root's commands.
	URoot(ctx context.Context) (*tree.Tree, error)
}

// Runner executes RUN steps in machines. Several may run at once.
type Runner interface {
	// Run executes the step's command with Root as its root directory and gives
	// the root afterwards, a new tree. A command that ends with another status
	// than 0 is an *ExitError.
	Run(ctx context.Context, step RunStep) (*tree.Tree, error)
}

// RunStep is a command and all that it sees.
type RunStep struct {
	Root     *tree.Tree // not to be changed
	Argv     []string   // the program and its arguments; a name without a slash is looked for in PATH
	Env      []string   // NAME=VALUE
	Cwd      string     // absolute, and there
	UID, GID uint32
	Groups   []uint32
	Secrets  []Secret
	Network  bool          // as the egress policy of the Runner has it; false is none
	Timeout  time.Duration // 0 is none
	Output   io.Writer     // what the command prints
}

// Secret is a value that a step sees and no disk.
type Secret struct {
	ID       string
	Path     string // of a file on tmpfs, or ""
	Env      string // a variable, or ""
	Mode     uint16
	UID, GID uint32
	Data     []byte
}

// ExitError is the end of a RUN whose command failed.
type ExitError struct {
	Status int // 128+N for signal N
}

func (e *ExitError) Error() string { return fmt.Sprintf("exit status %d", e.Status) }

// Result is a finished build.
type Result struct {
	Image  spec.Image // without its Disk until Put or WriteDisk
	Labels map[string]string
	// Name is LABEL smolbsd.service, for an image that is given no other, or "".
	Name string
	// Layout is how a disk is made of the tree.
	Layout image.Options
	// Cached says that no step had to be done.
	Cached bool

	e     *engine
	state *state
	tenth bool // Layout.Free is a tenth of the content
}

// EventKind is what an Event is about.
type EventKind uint8

// The kinds of events. Every Start is followed by one of Done, Cached and Failed.
const (
	EventStart   EventKind = iota + 1 // a step begins
	EventCached                       // a step was done before
	EventDone                         // a step is done
	EventFailed                       // a step failed, or was given up
	EventOutput                       // a RUN printed Data
	EventWarning                      // Text is about what works, perhaps not as meant
)

// Event is something that happened.
type Event struct {
	Kind  EventKind
	ID    int           // of the step, in the order of their starts
	Stage string        // its stage
	Step  string        // "2/5"
	Text  string        // the instruction
	Took  time.Duration // Done, Failed
	Data  []byte        // Output; valid during the call
	Err   error         // Failed
}
