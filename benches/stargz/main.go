// Serves the packaged stargz-snapshotter library to containerd as a proxy snapshotter, as containerd-stargz-grpc does:
// Debian has the library and ctr-remote, not the daemon.
//
//	stargz SOCKET ROOT
//
// Prefetch is on, the background fetch is off: what is transferred is what a job asked for.
package main

import (
	"context"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	"github.com/containerd/containerd/reference"
	"github.com/containerd/containerd/remotes/docker"
	"github.com/containerd/stargz-snapshotter/fs"
	"github.com/containerd/stargz-snapshotter/fs/config"
	"github.com/containerd/stargz-snapshotter/fs/layer"
	"github.com/containerd/stargz-snapshotter/fs/source"
	"github.com/containerd/stargz-snapshotter/snapshot"
	"google.golang.org/grpc"
)

// One client for all: the library reads its Transport, which must not be nil.
var client = &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}

// plainHTTP is where a reference's registry answers: at its own name, unencrypted.
func plainHTTP(named reference.Spec) ([]docker.RegistryHost, error) {
	return []docker.RegistryHost{{
		Client: client, Scheme: "http", Host: named.Hostname(), Path: "/v2",
		Capabilities: docker.HostCapabilityResolve | docker.HostCapabilityPull,
	}}, nil
}

func serve(socket, root string) error {
	tree, err := fs.NewFilesystem(filepath.Join(root, "layers"),
		config.Config{NoBackgroundFetch: true, NoPrometheus: true},
		fs.WithGetSources(source.FromDefaultLabels(plainHTTP)),
		fs.WithOverlayOpaqueType(layer.OverlayOpaqueTrusted))
	if err != nil {
		return err
	}
	snapshotter, err := snapshot.NewSnapshotter(context.Background(), filepath.Join(root, "snapshots"), tree,
		snapshot.AsynchronousRemove)
	if err != nil {
		return err
	}
	defer snapshotter.Close()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshots.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGINT, syscall.SIGTERM)
	go func() { <-ended; server.Stop() }()
	return server.Serve(listener)
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: stargz SOCKET ROOT")
	}
	if err := serve(os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}
