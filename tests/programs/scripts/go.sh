# Programs written in Go, those of Docker: commands that need no daemon, and what they say without one.
export DOCKER_CONFIG=config

runc --version
runc --root root list
runc spec && cat config.json
runc --root root state none 2>/dev/null
echo "state: $?"
containerd --version
containerd config default
ctr --help
ctr --address /nowhere/socket --connect-timeout 1ms version 2>&1
echo "ctr: $?"
dockerd --version
dockerd --help
docker --version
DOCKER_HOST=unix:///nowhere/socket docker version 2>&1
echo "docker: $?"
docker context create other --docker host=unix:///nowhere/socket 2>&1
docker context ls --format '{{.Name}} {{.Current}}'
docker --help
for _ in 1 2 3 4 5 6 7 8 9 10; do
    docker context inspect other --format '{{json .Endpoints.docker.SkipTLSVerify}}'
done
rm -r config config.json root
ls
