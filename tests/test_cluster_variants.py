"""The cluster files of clouds and Kubernetes, as far as they can be tried without an account.

Ray validates and completes those of `ray up`; for AWS it does so, and starts machines, against
moto, which also holds what the head does against the policies of its profile. Pods are held against
the schemas of Kubernetes, what KubeRay adds against its documented fields below: KubeRay itself is
tried nowhere here.
"""

import importlib
import json
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import s3
import yaml
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.util import prepare_config, validate_config

from smallm.cluster import least_machines

ROOT = Path(__file__).parents[1]
OWN = yaml.safe_load((ROOT / "cluster.yaml").read_text())
CLOUDS = ("aws", "gcp")
KINDS = ("rayjob", "rayservice")


def read(name):
    return yaml.safe_load((ROOT / "clusters" / f"{name}.yaml").read_text())


@pytest.fixture
def _own_keys(tmp_path, monkeypatch):
    """Ray writes SSH keys and what it asked a cloud into the home and /tmp."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token")
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", CLOUDS)
def test_ray_takes_the_file_and_knows_every_field(name):
    config = prepare_config(read(name))
    validate_config(config)
    workers = config["available_node_types"]["gpu_spot"]
    assert workers["resources"]["GPU"] == 1
    assert 1 <= workers["min_workers"] < workers["max_workers"] == config["max_workers"]


@pytest.mark.parametrize("name", CLOUDS)
def test_it_is_made_from_the_parts_of_the_cluster_file(name):
    config = read(name)
    for part in ("file_mounts", "rsync_exclude", "setup_commands"):
        assert config[part] == OWN[part]
    # Ray's second autoscaler is right where the cloud and not a list gives the machines
    start = OWN["head_start_ray_commands"][1].removeprefix("RAY_enable_autoscaler_v2=0 ")
    stop, *_, mlflow = OWN["head_start_ray_commands"]
    assert config["head_start_ray_commands"] == [stop, start, mlflow]
    assert config["worker_start_ray_commands"] == OWN["worker_start_ray_commands"][:2]
    for local in config["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).exists()


@pytest.mark.usefixtures("_own_keys")
def test_aws_gets_what_the_file_says_down_to_spot_machines(monkeypatch):
    from moto import mock_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config = read("aws")
    for each, value in s3.ENVIRONMENT.items():
        monkeypatch.setenv(each, value)
    with mock_aws():
        _make_profiles()
        full = _bootstrap_config(config, no_config_cache=True)
        provider = AWSNodeProvider(full["provider"], full["cluster_name"])
        for name, kind in full["available_node_types"].items():
            tags = {"ray-node-type": "worker", "ray-user-node-type": name}
            assert provider.create_node(kind["node_config"], tags, 1)
        found = {instance.instance_type: instance for instance in provider.ec2.instances.all()}
        head, worker = found["m7i.xlarge"], found["g6.2xlarge"]
        assert worker.instance_lifecycle == "spot"
        assert head.instance_lifecycle is None
        assert worker.iam_instance_profile["Arn"].endswith("smallm-workers")
        assert head.iam_instance_profile["Arn"].endswith("smallm-head")
        assert {each["GroupName"] for each in worker.security_groups} == {"ray-autoscaler-smallm"}


def _make_profiles():
    """As the command in the head of aws.yaml does it."""
    import boto3

    boto3.client("cloudformation").create_stack(
        StackName="smallm",
        TemplateBody=(ROOT / "clusters" / "aws-profiles.yaml").read_text(),
        Parameters=[{"ParameterKey": "Bucket", "ParameterValue": s3.BUCKET}],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )


@contextmanager
def _on_a_machine(profile, monkeypatch):
    """With the rights of a machine that has a profile."""
    import boto3
    from moto.core import enable_iam_authentication
    from ray.autoscaler._private.aws import utils

    (role,) = boto3.resource("iam").InstanceProfile(profile).roles
    assumed = boto3.client("sts").assume_role(RoleArn=role.arn, RoleSessionName="machine")
    given = assumed["Credentials"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", given["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", given["SecretAccessKey"])
    monkeypatch.setenv("AWS_SESSION_TOKEN", given["SessionToken"])
    for cache in (utils.resource_cache, utils.client_cache):  # of the person's rights
        cache.cache_clear()
    boto3.setup_default_session()
    with enable_iam_authentication():
        yield role
    for cache in (utils.resource_cache, utils.client_cache):
        cache.cache_clear()
    boto3.setup_default_session()


def _policies(role):
    """All that a role has, as JSON."""
    return [json.dumps(each.default_version.document) for each in role.attached_policies.all()]


def _may(policies, action, resource):
    from moto.iam.access_control import IAMPolicy, PermissionResult

    found = [IAMPolicy(each).is_action_permitted(action, resource) for each in policies]
    return PermissionResult.PERMITTED in found


@pytest.mark.usefixtures("_own_keys")
def test_the_profile_of_the_head_lets_ray_start_and_end_workers_and_no_more(monkeypatch):
    import boto3
    from botocore.exceptions import ClientError
    from moto import mock_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    for each, value in s3.ENVIRONMENT.items():
        monkeypatch.setenv(each, value)
    with mock_aws():
        _make_profiles()
        full = _bootstrap_config(read("aws"), no_config_cache=True)
        worker = full["available_node_types"]["gpu_spot"]["node_config"]
        with _on_a_machine("smallm-head", monkeypatch):
            assert _bootstrap_config(full, no_config_cache=True)["auth"] == full["auth"]
            provider = AWSNodeProvider(full["provider"], full["cluster_name"])
            (made,) = provider.create_node(worker, {"ray-node-type": "worker"}, 1)
            assert provider.non_terminated_nodes({"ray-node-type": "worker"}) == [made]
            provider.set_node_tags(made, {"ray-node-status": "up-to-date"})
            provider.terminate_node(made)
            with pytest.raises(ClientError, match="not authorized"):
                boto3.client("ec2").create_key_pair(KeyName="more")
        with (
            _on_a_machine("smallm-workers", monkeypatch),
            pytest.raises(ClientError, match="not authorized"),
        ):
            boto3.client("ec2").terminate_instances(InstanceIds=[made])


def test_the_profiles_of_aws_pass_on_the_role_of_workers_read_the_image_and_use_one_bucket(
    monkeypatch,
):
    import boto3
    from moto import mock_aws

    for each, value in s3.ENVIRONMENT.items():
        monkeypatch.setenv(each, value)
    config = read("aws")
    parameter = config["available_node_types"]["head"]["node_config"]["ImageId"].split(":")[-1]
    image = f"arn:aws:ssm:{config['provider']['region']}::parameter{parameter}"
    with mock_aws():
        _make_profiles()
        iam = boto3.resource("iam")
        head, workers = (
            _policies(iam.Role(profile.roles[0].name))
            for profile in map(iam.InstanceProfile, ("smallm-head", "smallm-workers"))
        )
        role = iam.Role("smallm-workers").arn
        assert _may(head, "iam:PassRole", role)
        assert not _may(head, "iam:PassRole", iam.Role("smallm-head").arn)
        assert not _may(workers, "iam:PassRole", role)
        assert _may(head, "ssm:GetParameters", image)
        assert not _may(head, "ssm:GetParameters", image.replace("aws/service", "secret"))
        for each in (head, workers):
            for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
                assert _may(each, action, f"arn:aws:s3:::{s3.BUCKET}/smallm/file")
                assert not _may(each, action, "arn:aws:s3:::another/smallm/file")
            assert _may(each, "s3:ListBucket", f"arn:aws:s3:::{s3.BUCKET}")


@pytest.mark.parametrize("name", CLOUDS)
def test_a_search_knows_how_many_machines_the_cloud_starts_with(name):
    assert least_machines(ROOT / "clusters" / f"{name}.yaml") == 2
    assert least_machines(ROOT / "cluster.yaml") == 3


def test_a_field_that_ray_does_not_know_is_refused():
    wrong = {**read("aws"), "max_worker": 3}
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(wrong))


def closed(required=(), **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


POD = {"type": "object", "required": ["spec"]}  # held against Kubernetes' own schema
START = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}
TEXT, SWITCH = {"type": "string"}, {"type": "boolean"}
CLUSTER = closed(
    ["headGroupSpec"],
    rayVersion=TEXT,
    enableInTreeAutoscaling=SWITCH,
    authOptions=closed(mode={"enum": ["disabled", "token"]}),
    autoscalerOptions=closed(
        idleTimeoutSeconds=COUNT, upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}
    ),
    headGroupSpec=closed(["template"], rayStartParams=START, template=POD),
    workerGroupSpecs={
        "type": "array",
        "items": closed(
            ["groupName", "template", "maxReplicas", "minReplicas"],
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=START,
            template=POD,
        ),
    },
)
KUBERAY = {
    "RayJob": closed(
        ["rayClusterSpec"],
        entrypoint=TEXT,
        shutdownAfterJobFinishes=SWITCH,
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=CLUSTER,
    ),
    "RayService": closed(["rayClusterConfig"], serveConfigV2=TEXT, rayClusterConfig=CLUSTER),
}


def cluster_of(manifest):
    (name,) = {"rayClusterSpec", "rayClusterConfig"} & set(manifest["spec"])
    return manifest["spec"][name]


def pods(manifest):
    cluster = cluster_of(manifest)
    return [each["template"] for each in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@pytest.mark.parametrize("name", KINDS)
def test_a_manifest_has_kuberay_s_fields_and_pods_that_kubernetes_takes(name):
    import ray

    manifest = read(name)
    assert manifest["apiVersion"] == "ray.io/v1"
    jsonschema.validate(manifest["spec"], KUBERAY[manifest["kind"]])
    version = kubernetes_validate.latest_version()
    for pod in pods(manifest):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **pod}
        kubernetes_validate.validate(whole, version, strict=True)
    assert cluster_of(manifest)["rayVersion"] == ray.__version__


def test_a_pod_with_a_wrong_field_is_refused():
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "a", "imag": "b"}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_search_and_server_run_on_the_same_cluster_on_spot_gpus():
    job, service = map(read, KINDS)
    job_pods, service_pods = pods(job), pods(service)
    del job_pods[0]["spec"]["containers"][0]["env"]
    assert job_pods[0] == service_pods[0]
    del service_pods[1]["spec"]["containers"][0]["ports"]
    assert job_pods[1] == service_pods[1]
    (worker,) = job_pods[1]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_a_search_asks_kubernetes_for_all_its_gpus_at_once():
    from tune import search

    (per_gpu,) = (each.default for each in search.main.params if each.name == "trials_per_gpu")
    cluster = cluster_of(read("rayjob"))
    (workers,) = cluster["workerGroupSpecs"]
    (head,) = (
        each
        for each in cluster["headGroupSpec"]["template"]["spec"]["containers"]
        if each["name"] == "ray-head"
    )
    waiting = {"name": "TUNE_MAX_PENDING_TRIALS_PG", "value": str(workers["maxReplicas"] * per_gpu)}
    assert waiting in head["env"]


def test_the_image_has_what_the_manifests_start():
    copied = {
        word
        for line in (ROOT / "clusters" / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY")
        for word in line.split()[2:-1]
    }
    assert {Path(each) for each in OWN["file_mounts"].values() if "~" not in each} <= {
        Path(each) for each in copied
    }
    assert all((ROOT / each).exists() for each in copied)
    source = "/home/ray/.smallm/source/"
    script = read("rayjob")["spec"]["entrypoint"].split()[1]
    assert script.startswith(source)
    assert (ROOT / script.removeprefix(source)).is_file()


def test_the_server_of_the_manifest_is_one_that_ray_serve_and_ours_take():
    from ray.serve.schema import ServeDeploySchema

    from smallm.serving.settings import ServeSettings

    config = yaml.safe_load(read("rayservice")["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    module, _, function = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    ServeSettings.model_validate(application.args)
