package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// taken explains why a port cannot be had, and names who has it where the system tells.
func taken(service, port string, err error) error {
	if !errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("listen for %s: %w", service, err)
	}
	return fmt.Errorf("port %s, which %s needs, is taken by %s: stop that, or set TW_HTTP_PORTS", port, service, holder(port))
}

// holder is the process that listens on a TCP port, as far as /proc shows it to us.
func holder(port string) string {
	for _, inode := range listeningInodes(port) {
		if pid := processOf("socket:[" + inode + "]"); pid != "" {
			command, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
			return fmt.Sprintf("process %s (%s)", pid, strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " ")))
		}
	}
	return "another process"
}

// listeningInodes are the sockets that listen on the port, from the kernel's tables.
func listeningInodes(port string) []string {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil
	}
	suffix := fmt.Sprintf(":%04X", n)
	var inodes []string
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			// sl local_address rem_address st ... inode; 0A is LISTEN
			if field := strings.Fields(lines.Text()); len(field) > 9 && strings.HasSuffix(field[1], suffix) && field[3] == "0A" {
				inodes = append(inodes, field[9])
			}
		}
		_ = f.Close()
	}
	return inodes
}

// processOf is the process that holds the socket open.
func processOf(socket string) string {
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && target == socket {
			return strings.Split(link, "/")[2]
		}
	}
	return ""
}
