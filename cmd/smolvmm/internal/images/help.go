package images

const imagesHelp = `smolvmm images lists the images of the store.

Usage: smolvmm images [flags] [NAME]

With NAME those of that name and any tag, or below it. DISK is the size of the
disk, STORED what the image takes here; what images share counts for each.

      --format HOW   table or json (default table)
  -q, --quiet        only the IDs
  -h, --help         show the help
`

const rmiHelp = `smolvmm rmi removes images.

Usage: smolvmm rmi [-f] IMAGE…

By name, the name goes, and with the last name the image; by ID, the image. What
no other image, no build in progress and no step of the build cache needs is
removed from the disk at once.

  -f, --force   also an ID with several names, and the disk of a machine
  -h, --help    show the help
`

const tagHelp = `smolvmm tag gives an image one more name; an image that had it loses it.

Usage: smolvmm tag IMAGE NAME[:TAG]

  -h, --help   show the help

  smolvmm tag web registry.example/team/web:1.0
`

const imageHelp = `smolvmm image shows what an image is, and whether it is whole.

Usage: smolvmm image inspect [--format HOW] IMAGE…
       smolvmm image check IMAGE…

inspect prints JSON. As document it prints the description alone, byte for byte
as it is signed: its SHA-256 is the image's ID. check reads the disk, the kernel
and the tree again and compares them with their digests.

      --format HOW   json or document (default json)
  -h, --help         show the help

  smolvmm image inspect --format document web > web.json
  minisign -V -p key.pub -x web.minisig -m web.json
`

const pruneHelp = `smolvmm prune removes images that have no name, and what no image needs.

Usage: smolvmm prune [flags]

What the build cache needs stays, so that builds stay quick; so do the disks of
machines, and what was stored within the last hour.

      --cache        also what only the build cache needs
      --grace TIME   how long ago something must have been stored (default 1h)
  -n, --dry-run      only tell what would go
  -h, --help         show the help
`

const saveHelp = `smolvmm save writes images into one archive, for smolvmm load.

Usage: smolvmm save [flags] IMAGE… > FILE

The archive is a tar of an OCI image layout, with the signatures; disks are
compressed, holes take no room. The same images give the same bytes.

  -o, --output FILE   write there instead of standard output
      --raw           leave the disk uncompressed, as smolBSD has it
      --no-tree       leave out what FROM and COPY --from need
  -h, --help          show the help
`

const loadHelp = `smolvmm load takes images out of an archive that smolvmm save made.

Usage: smolvmm load [flags] [FILE]

  -i, --input FILE      the archive; default: standard input
      --verify KEY      only images signed by KEY: a file, a key, or a name of
                        smolvmm key list; repeatable
      --no-tree         leave out what FROM and COPY --from need
      --max-size SIZE   refuse larger disks and archives (default 64G)
  -h, --help            show the help
`

const pullHelp = `smolvmm pull fetches an image from a registry into the store.

Usage: smolvmm pull [flags] [REGISTRY/]NAME[:TAG][@DIGEST]

A name without a registry is looked for in the one that ` + RegistryVariable + ` names, or else
where smolBSD publishes: ` + DefaultRegistry + `.

      --verify KEY      only if signed by KEY: a file, a key, or a name of
                        smolvmm key list; repeatable
      --no-tree         leave out what FROM and COPY --from need
      --max-size SIZE   refuse a larger disk (default 64G)
  -u, --username NAME   log in; without it docker's config.json is asked
      --password-stdin  read the password from standard input
      --plain-http      speak HTTP without TLS, as to the loopback without it
  -h, --help            show the help

  smolvmm pull rescue-amd64:latest
  smolvmm pull --verify key.pub registry.example/team/web:1.0
`

const pushHelp = `smolvmm push puts an image and its signatures into a registry.

Usage: smolvmm push [flags] [IMAGE] REGISTRY/NAME[:TAG]

Without IMAGE, the image of that name. The digest under which others can pull it
is printed.

      --raw             leave the disk uncompressed, as smolBSD has it
      --no-tree         leave out what FROM and COPY --from need
  -u, --username NAME   log in; without it docker's config.json is asked
      --password-stdin  read the password from standard input
      --plain-http      speak HTTP without TLS, as to the loopback without it
  -h, --help            show the help

  smolvmm push web registry.example/team/web:1.0
`

const keyHelp = `smolvmm key makes and lists keys for signatures, in minisign's formats.

Usage: smolvmm key generate [--password-stdin] [NAME]
       smolvmm key list
       smolvmm key show [NAME]

NAME is "default" if not given. The keys are NAME.key and NAME.pub in smolvmm's
configuration folder; nobody else can read the first. show prints the public key
on one line, as --verify and minisign -P take it. A NAME.pub of somebody else's
put there is a key that smolvmm verify trusts.

      --password-stdin  encrypt the secret key with the password on standard
                        input; using it takes a second and 1 GiB of memory
  -h, --help            show the help
`

const signHelp = `smolvmm sign signs an image: its description, and so disk, kernel and tree.

Usage: smolvmm sign [flags] IMAGE

The signature is kept with the image, and goes along with push and save.

  -k, --key NAME        name or file of the secret key (default "default")
  -c, --comment TEXT    signed too, instead of the time and the image's name
      --password-stdin  read the key's password from standard input
      --legacy          the form of minisign before 0.10
  -h, --help            show the help
`

const verifyHelp = `smolvmm verify tells who has signed an image; it fails if nobody trusted has.

Usage: smolvmm verify [--key KEY]… IMAGE

  -k, --key KEY   a file with a public key, a key itself, or a name of smolvmm
                  key list; repeatable (default: all of smolvmm key list)
  -h, --help      show the help
`
