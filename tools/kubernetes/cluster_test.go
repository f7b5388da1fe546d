package kubernetes_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

// root is the repository's, and bin where its Makefile has programs.
var (
	root = filepath.Join("..", "..")
	bin  = filepath.Join(root, "bin")
)

// Ports of a cluster, on 127.0.0.1.
const (
	etcdPort = 21379 + iota
	etcdPeerPort
	apiPort
	controllerPort
	schedulerPort
	kwokPort
	metricsPort
)

// modules are where manifests of other projects come from: their CRDs, and the stages of kwok.
var modules = map[string]string{
	"kwok":       "sigs.k8s.io/kwok@v0.8.0",
	"keda":       "github.com/kedacore/keda/v2@v2.21.0",
	"gateway":    "sigs.k8s.io/gateway-api@v1.6.3",
	"extension":  "sigs.k8s.io/gateway-api-inference-extension@v1.6.0",
	"kserve":     "github.com/kserve/kserve@v0.17.0",
	"kueue":      "sigs.k8s.io/kueue@v0.17.0",
	"prometheus": "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring@v0.95.2",
}

// module is the folder of a module's files.
func module(t *testing.T, name string) string {
	t.Helper()
	c := exec.Command("go", "mod", "download", "-json", modules[name])
	out, err := c.Output()
	var m struct{ Dir, Error string }
	if jerr := json.Unmarshal(out, &m); jerr != nil || m.Dir == "" {
		t.Skipf("%s is not to be had: %v %v %s", modules[name], err, jerr, m.Error)
	}
	return m.Dir
}

// cluster is a control plane whose nodes are kwok's: no container runs, all else is real.
type cluster struct {
	dir    string
	config *rest.Config
	kube   kubernetes.Interface
	any    dynamic.Interface
	mapper *restmapper.DeferredDiscoveryRESTMapper

	started   time.Time
	processes map[string]*exec.Cmd
	mu        sync.Mutex
	warnings  []string
}

// HandleWarningHeader takes what the API server warns of: Pod Security, fields of old versions.
func (c *cluster) HandleWarningHeader(_ int, _, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.warnings = append(c.warnings, text)
}

// takeWarnings are those since the last call.
func (c *cluster) takeWarnings() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.warnings
	c.warnings = nil
	return list
}

// program gives a program's path, or skips the test.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(bin, name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		return path
	}
	path, err = exec.LookPath(name)
	if err != nil {
		t.Skipf("there is no %s: make test-kubernetes gets it", name)
	}
	return path
}

// startCluster starts etcd, API server, controllers, scheduler and kwok, which end with the test.
func startCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{dir: t.TempDir(), started: time.Now(), processes: map[string]*exec.Cmd{}}
	names := []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok", "helm"}
	for _, name := range names {
		program(t, name)
	}
	stages := c.stages(t)
	token := rand.Text()
	c.file(t, "tokens.csv", token+",admin,admin,system:masters\n")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c.file(t, "accounts.pem", string(pem.EncodeToMemory(
		&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	api := fmt.Sprintf("https://127.0.0.1:%d", apiPort)
	kubeconfig := c.file(t, "kubeconfig", fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: %q, insecure-skip-tls-verify: true}}]
users: [{name: a, user: {token: %s}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
current-context: a
`, api, token))
	etcd := fmt.Sprintf("http://127.0.0.1:%d", etcdPort)
	c.run(t, "etcd", "--data-dir", filepath.Join(c.dir, "etcd"), "--listen-client-urls", etcd,
		"--advertise-client-urls", etcd,
		"--listen-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", etcdPeerPort), "--unsafe-no-fsync")
	c.run(t, "kube-apiserver", "--etcd-servers", etcd, "--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", apiPort),
		"--cert-dir", filepath.Join(c.dir, "certificates"), "--token-auth-file", filepath.Join(c.dir, "tokens.csv"),
		// Lists by watch wait for progress, which Debian's etcd does not report.
		"--authorization-mode=RBAC", "--feature-gates=WatchList=false",
		"--service-cluster-ip-range=10.96.0.0/16", "--service-account-issuer=https://cluster.invalid",
		"--service-account-key-file", filepath.Join(c.dir, "accounts.pem"),
		"--service-account-signing-key-file", filepath.Join(c.dir, "accounts.pem"))
	c.config = &rest.Config{Host: api, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{Insecure: true},
		QPS: 500, Burst: 500, WarningHandler: c}
	c.connect(t)
	eventually(t, 2*time.Minute, "the API server is ready", func() error {
		return c.kube.Discovery().RESTClient().Get().AbsPath("/readyz").Do(t.Context()).Error()
	})
	c.run(t, "kube-controller-manager", "--kubeconfig", kubeconfig, "--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", controllerPort), "--cert-dir", filepath.Join(c.dir, "controllers"),
		"--leader-elect=false",
		"--service-account-private-key-file", filepath.Join(c.dir, "accounts.pem"),
		"--horizontal-pod-autoscaler-sync-period=2s", "--horizontal-pod-autoscaler-initial-readiness-delay=1s",
		"--kube-api-qps=300", "--kube-api-burst=300")
	c.run(t, "kube-scheduler", "--kubeconfig", kubeconfig, "--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", schedulerPort), "--cert-dir", filepath.Join(c.dir, "scheduler"),
		"--leader-elect=false")
	c.run(t, "kwok", "--kubeconfig", kubeconfig, "--config", stages, "--manage-all-nodes=true",
		"--node-lease-duration-seconds=40",
		fmt.Sprintf("--server-address=127.0.0.1:%d", kwokPort))
	return c
}

// connect makes the clients.
func (c *cluster) connect(t *testing.T) {
	t.Helper()
	client, err := rest.HTTPClientFor(c.config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	kube, err := kubernetes.NewForConfigAndClient(c.config, client)
	if err != nil {
		t.Fatal(err)
	}
	c.kube = kube
	if c.any, err = dynamic.NewForConfigAndClient(c.config, client); err != nil {
		t.Fatal(err)
	}
	c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(kube.Discovery()))
}

// stages is the file that says what kwok does to nodes and pods: a pod is ready two seconds after it was placed. What
// ends pods of Jobs is left out: tests do that.
func (c *cluster) stages(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(module(t, "kwok"), "kustomize", "stage")
	var all []string
	for _, name := range []string{
		"node/fast/node-initialize.yaml", "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
		"pod/fast/pod-ready.yaml", "pod/fast/pod-delete.yaml",
	} {
		b, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		if strings.HasSuffix(name, "pod-ready.yaml") {
			text = strings.Replace(text, "\n  next:", "\n  delay: {durationMilliseconds: 2000}\n  next:", 1)
		}
		all = append(all, text)
	}
	return c.file(t, "stages.yaml", strings.Join(all, "\n---\n"))
}

// file writes a file of the cluster's folder.
func (c *cluster) file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// run starts a program that ends with the test. Its output is shown if the test fails.
func (c *cluster) run(t *testing.T, name string, args ...string) {
	t.Helper()
	output, err := os.Create(filepath.Join(c.dir, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	p := exec.Command(program(t, name), args...)
	p.Stdout, p.Stderr = output, output
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	c.processes[name] = p
	t.Cleanup(func() {
		_ = p.Process.Signal(syscall.SIGTERM)
		ended := time.AfterFunc(5*time.Second, func() { _ = p.Process.Kill() })
		_ = p.Wait()
		ended.Stop()
		output.Close()
		if t.Failed() {
			b, _ := os.ReadFile(output.Name())
			t.Logf("%s:\n%s", name, b[max(0, len(b)-3000):])
		}
	})
}

// usage is the processes' memory and processor time together.
func (c *cluster) usage() string {
	var list []string
	var all int64
	var ticks float64
	for name, p := range c.processes {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
		if err != nil {
			continue
		}
		if m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status); m != nil {
			kb, _ := strconv.ParseInt(string(m[1]), 10, 64)
			all += kb
			list = append(list, fmt.Sprintf("%s %d", strings.TrimPrefix(name, "kube-"), kb>>10))
		}
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
		if f := strings.Fields(string(stat)); len(f) > 14 {
			user, _ := strconv.ParseFloat(f[13], 64)
			system, _ := strconv.ParseFloat(f[14], 64)
			ticks += user + system
		}
	}
	slices.Sort(list)
	return fmt.Sprintf("%d MB (%s), %.0f CPU-s", all>>10, strings.Join(list, ", "), ticks/100)
}

// say writes a line of the transcript.
func (c *cluster) say(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Logf("[%6.1f s] %s", time.Since(c.started).Seconds(), fmt.Sprintf(format, args...))
}

// eventually polls until f has no error.
func eventually(t *testing.T, most time.Duration, what string, f func() error) {
	t.Helper()
	end := time.Now().Add(most)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v: %v", what, most, err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}

// parse has the objects of a YAML text.
func parse(t *testing.T, text []byte) (list []*unstructured.Unstructured) {
	t.Helper()
	d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		o := &unstructured.Unstructured{}
		err := d.Decode(o)
		if err != nil && err.Error() == "EOF" {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(o.Object) > 0 {
			list = append(list, o)
		}
	}
}

// create makes an object, and refuses fields that its kind does not have.
func (c *cluster) create(ctx context.Context, namespace string, o *unstructured.Unstructured) error {
	m, err := c.mapper.RESTMapping(o.GroupVersionKind().GroupKind(), o.GroupVersionKind().Version)
	if err != nil {
		return fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err)
	}
	var r dynamic.ResourceInterface = c.any.Resource(m.Resource)
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		r = c.any.Resource(m.Resource).Namespace(namespace)
	}
	_, err = r.Create(ctx, o, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
	if err != nil {
		return fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err)
	}
	return nil
}

// createAll makes the objects of a YAML text.
func (c *cluster) createAll(t *testing.T, namespace string, text []byte) (kinds []string) {
	t.Helper()
	for _, o := range parse(t, text) {
		if err := c.create(t.Context(), namespace, o); err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, o.GetKind())
	}
	return kinds
}

// namespace makes one whose pods have to be restricted.
func (c *cluster) namespace(t *testing.T, name string) {
	t.Helper()
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted",
	}}}
	if _, err := c.kube.CoreV1().Namespaces().Create(t.Context(), n, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the namespace has its account", func() error {
		_, err := c.kube.CoreV1().ServiceAccounts(name).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
}

// nodes makes nodes in three zones.
func (c *cluster) nodes(t *testing.T, prefix string, count int, cpu, memory string) {
	t.Helper()
	capacity := corev1.ResourceList{
		"cpu": resource.MustParse(cpu), "memory": resource.MustParse(memory), "pods": resource.MustParse("110"),
	}
	for i := range count {
		name := fmt.Sprintf("%s-%d", prefix, i)
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": fmt.Sprintf("zone-%d", i%3), "pool": prefix,
		}}, Status: corev1.NodeStatus{Capacity: capacity, Allocatable: capacity}}
		if _, err := c.kube.CoreV1().Nodes().Create(t.Context(), n, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, time.Minute, "nodes are ready", func() error {
		list, err := c.kube.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{LabelSelector: "pool=" + prefix})
		if err != nil {
			return err
		}
		for _, n := range list.Items {
			if !slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
				return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
			}) || len(n.Spec.Taints) > 0 {
				return fmt.Errorf("%s: %v %v", n.Name, n.Status.Conditions, n.Spec.Taints)
			}
		}
		return nil
	})
}

// helm runs a command of helm.
func (c *cluster) helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	p := exec.CommandContext(t.Context(), program(t, "helm"), args...)
	p.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(c.dir, "kubeconfig"), "HELM_CACHE_HOME="+c.dir,
		"HELM_CONFIG_HOME="+c.dir, "HELM_DATA_HOME="+c.dir)
	out, err := p.CombinedOutput()
	return string(out), err
}

// patchPodStatus ends a pod as a kubelet reports it.
func (c *cluster) endPod(ctx context.Context, p corev1.Pod, exit int32) error {
	phase := corev1.PodSucceeded
	if exit != 0 {
		phase = corev1.PodFailed
	}
	now := metav1.Now()
	p.Status.Phase = phase
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: p.Spec.Containers[0].Name, Image: p.Spec.Containers[0].Image,
		State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: exit, StartedAt: now, FinishedAt: now,
		}},
	}}
	_, err := c.kube.CoreV1().Pods(p.Namespace).UpdateStatus(ctx, &p, metav1.UpdateOptions{})
	return err
}

var errNotYet = errors.New("not yet")

// get asks an address of the cluster's own.
func get(url string) error {
	r, err := http.Get(url)
	if err == nil {
		r.Body.Close()
	}
	return err
}
