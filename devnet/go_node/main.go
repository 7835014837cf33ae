// Command gonode is the reference DCNode in Go: an object store over HTTP whose data are encrypted under keys that exist
// only inside its enclave. It works on the same data folders as the reference node in Python.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"handover"
	"handover/tee"
)

const exitRefused = 2

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitRefused)
	}
}

func run() error {
	data := flag.String("data", "", "data folder; one node at a time works on it")
	port := flag.Int("port", 0, "port to listen on")
	host := flag.String("host", "127.0.0.1", "address to listen on")
	upgrader := flag.String("upgrader", "", "URL of the key vault")
	signatureFile := flag.String("network-signature-file", "", "the network's signatures over this enclave's id")
	firstInstall := flag.Bool("first-install", false, "make keys: the folder is empty and new")
	flag.Parse()
	if *data == "" || *signatureFile == "" {
		return errors.New("--data and --network-signature-file are needed")
	}
	if err := handover.HardenProcess(); err != nil {
		return err
	}
	lock, err := lockData(*data)
	if err != nil {
		return err
	}
	defer lock.Close()
	n, err := open(*data, *upgrader, *signatureFile)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return serve(ctx, n, net.JoinHostPort(*host, strconv.Itoa(*port)), *firstInstall)
}

// lockData takes the data folder for the life of the process: never two nodes at work on the same data.
func lockData(folder string) (*os.File, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(folder, ".lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		file.Close()
		return nil, fmt.Errorf("NODE_DATA_LOCKED: another node is at work on %s", folder)
	}
	return file, nil
}

func open(data, upgrader, signatureFile string) (*node, error) {
	p, err := loadPolicy()
	if err != nil {
		return nil, err
	}
	driver, err := tee.Open()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(signatureFile)
	if err != nil {
		return nil, err
	}
	signatures, err := handover.DecodeSignatures(string(text))
	if err != nil {
		return nil, err
	}
	return newNode(p, driver, signatures, data, upgrader)
}

// serve answers until ctx ends; requests under way are finished first.
func serve(ctx context.Context, n *node, address string, firstInstall bool) error {
	routes, err := n.routes()
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		if err := n.bringUp(ctx, firstInstall); err != nil {
			slog.Error("not serving", "error", err)
			if errors.Is(err, errRestart) {
				cancel()
			}
		}
	}()
	return handover.NewServer(routes).Serve(ctx, listener)
}
