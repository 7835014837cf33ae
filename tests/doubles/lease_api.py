"""A double of the Kubernetes API for Leases: as strict about tokens, rights and resource versions as the real one."""

import copy
from typing import Any

from aiohttp import web

PATH = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


class LeaseApi:
    """`leases` by name. `agent_token` may read all and update slots; `operator_token` may update everything."""

    agent_token, operator_token = "agent-token", "operator-token"

    def __init__(self, namespace: str = "dcupgrade") -> None:
        self.namespace = namespace
        self.leases: dict[str, dict[str, Any]] = {}
        self.version = 1
        self.down = False

    def add(self, name: str, fleet: str) -> None:
        labels = {"dcupgrade/fleet": fleet}
        meta = {"name": name, "namespace": self.namespace, "labels": labels, "resourceVersion": str(self.version)}
        self.leases[name] = {"metadata": meta, "spec": {}}

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes([web.get(PATH, self._list), web.put(PATH + "/{name}", self._put)])
        return app

    def _refuse(self, status: int, message: str) -> web.Response:
        return web.json_response({"kind": "Status", "code": status, "message": message}, status=status)

    def _who(self, request: web.Request) -> str:
        return request.headers.get("Authorization", "").removeprefix("Bearer ")

    async def _list(self, request: web.Request) -> web.Response:
        if self.down:
            return self._refuse(500, "etcdserver: request timed out")
        if self._who(request) not in (self.agent_token, self.operator_token):
            return self._refuse(401, "Unauthorized")
        key, _, value = request.query.get("labelSelector", "").partition("=")
        items = [item for item in self.leases.values() if not key or item["metadata"]["labels"].get(key) == value]
        return web.json_response({"kind": "LeaseList", "items": items})

    async def _put(self, request: web.Request) -> web.Response:
        name, body = request.match_info["name"], await request.json()
        if self._who(request) == self.agent_token and "-slot-" not in name:
            return self._refuse(403, f'leases "{name}" is forbidden')
        if self._who(request) not in (self.agent_token, self.operator_token):
            return self._refuse(401, "Unauthorized")
        if name not in self.leases:
            return self._refuse(404, f'leases "{name}" not found')
        if body["metadata"].get("resourceVersion") != self.leases[name]["metadata"]["resourceVersion"]:
            return self._refuse(409, "the object has been modified")
        self.version += 1
        self.leases[name] = copy.deepcopy(body)
        self.leases[name]["metadata"]["resourceVersion"] = str(self.version)
        return web.json_response(self.leases[name])
